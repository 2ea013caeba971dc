"""Read the card of an engine."""


def code_of(card: str) -> str:
    """The Python code of a card."""
    return card.split("```python\n", 1)[1].split("```", 1)[0]
