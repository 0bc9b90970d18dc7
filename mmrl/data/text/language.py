"""Which texts the rules of mmrl hold for: parts of speech, negations and prompts are English."""

NOT_ENGLISH = "text is not English"
"""Why an example is excluded from what relies on English words."""


def is_english(language: str) -> bool:
    """Whether an ISO 639-1 code, with or without a region ("en-GB"), is that of English."""
    return language.partition("-")[0].casefold() == "en"
