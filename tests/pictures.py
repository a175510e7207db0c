"""Images for tests, small and real enough: of each kind the first bytes, then anything."""

from typing import Any, Final

PNG: Final = b"\x89PNG\r\n\x1a\n a png"
JPEG: Final = b"\xff\xd8\xff\xe0 a jpeg"
GIF: Final = b"GIF89a a gif"
WEBP: Final = b"RIFF\x0a\x00\x00\x00WEBPVP8 a webp"


def asking_about(*urls: str, text: str = "What is it?", **fields: Any) -> dict[str, Any]:
    """A request that shows these images."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content = [{"type": "text", "text": text}, *parts]
    return {"model": "gpt-5.1", "messages": [{"role": "user", "content": content}], **fields}
