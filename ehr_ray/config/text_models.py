"""How wide the embeddings of well-known sentence transformers are: known before one is run."""

from typing import Final

WIDTHS: Final = {
    "all-MiniLM-L6-v2": 384,
    "all-MiniLM-L12-v2": 384,
    "all-mpnet-base-v2": 768,
    "paraphrase-multilingual-mpnet-base-v2": 768,
}


def check_width(text_model: str | None, width: int | None) -> None:
    """Raise ValueError where a model's embeddings are known to have another width than asked."""
    name = (text_model or "").removeprefix("sentence-transformers/")
    if width is None or WIDTHS.get(name, width) == width:
        return
    others = [other for other, wide in WIDTHS.items() if wide == width]
    more = f", or take a text_model of {width}: {', '.join(others)}" if others else ""
    raise ValueError(
        f"embedding_dim {width}: {text_model} makes {WIDTHS[name]}; write embedding_dim: "
        f"{WIDTHS[name]}{more}"
    )
