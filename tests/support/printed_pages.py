"""Pages of plain lines, as an image."""

from PIL import Image, ImageDraw, ImageFont

A4 = (1240, 1754)
LINES = 30
TOP, PITCH = 150, 48


def printed(
    ink: int = 0, paper: int = 255, lines: int = LINES, words: str = "The stock of the northern store"
) -> Image.Image:
    """Draw an A4 page at 150 dpi with lines of the same words."""
    image = Image.new("L", A4, paper)
    draw = ImageDraw.Draw(image)
    for number in range(lines):
        draw.text((120, TOP + PITCH * number), words, fill=ink, font=ImageFont.load_default(26))
    return image.convert("RGB")


def lines_box(first: int, last: int) -> tuple[int, int, int, int]:
    """Return the box of lines from ``first`` to before ``last``, in 0..999 of the page."""
    top, bottom = (TOP + PITCH * number - 8 for number in (first, last))
    return (50, int(top / A4[1] * 1000), 950, int(bottom / A4[1] * 1000))
