"""Search in the titles and ids of a catalogue."""

from functools import cached_property

import polars as pl

from slmc.serving.catalogue import Catalogue


class Search:
    """Finds items by words; the most popular ones first."""

    def __init__(self, catalogue: Catalogue) -> None:
        """Take a catalogue; the first search prepares its texts."""
        self._catalogue = catalogue

    @cached_property
    def _texts(self) -> pl.DataFrame:
        """``item``, ``title`` and both in lower case, the most popular item first."""
        catalogue = self._catalogue
        columns = {"item": catalogue.items, "title": pl.Series(catalogue.titles, dtype=pl.String)}
        frame = pl.DataFrame(columns)[(catalogue.popular["row"] - 1).to_list()]
        return frame.with_columns(
            pl.col("item").str.to_lowercase().alias("id_text"),
            pl.col("title").fill_null("").str.to_lowercase().alias("title_text"),
        )

    def find(self, query: str, limit: int) -> list[dict[str, str | None]]:
        """The items whose title and id have all words of a query, in any case.

        An id that equals the query is first, then titles and ids that begin with it, then those
        in which each word begins a word, then all others; the most popular ones first.
        """
        words = query.lower().split()
        found = self._texts
        title, item = pl.col("title_text"), pl.col("id_text")
        for word in words:
            has = title.str.contains(word, literal=True) | item.str.contains(word, literal=True)
            found = found.filter(has)
        if words:
            whole = " ".join(words)
            begins = pl.all_horizontal(
                title.str.contains(f" {word}", literal=True) | title.str.starts_with(word)
                for word in words
            )
            order = (
                pl.when(item == whole).then(0)
                .when(title.str.starts_with(whole) | item.str.starts_with(whole)).then(1)
                .when(begins).then(2)
                .otherwise(3)
            )  # fmt: skip
            found = found.sort(order, maintain_order=True)
        return found.head(limit).select("item", "title").to_dicts()
