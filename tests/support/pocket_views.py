"""A line of print as the pocket reader sees it."""

from PIL import Image, ImageDraw

from app.pocket.layout.page import cut_page


def printed(text: str) -> Image.Image:
    image = Image.new("RGB", (420, 60), "white")
    ImageDraw.Draw(image).text((20, 18), text, fill="black", font_size=22)
    return image


def view(text: str) -> Image.Image:
    """The page's one view, as the reader cuts it."""
    return cut_page(printed(text)).views[0].image.convert("RGB")
