"""What a run tells: tables, HTML, JUnit, Markdown, model cards."""
