"""PDFs of one page, written by hand."""

from PIL import Image
from service_client import A4

HELVETICA = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
THREE_LINES = (
    "The invoice lists three items of stock.",
    "Each item was counted on Monday morning.",
    "The total is given at the foot of the page.",
)


def pdf_of(*objects: bytes) -> bytes:
    """A PDF of these objects, the first of which is its catalog."""
    body, offsets = b"%PDF-1.7\n", []
    for number, text in enumerate(objects, start=1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, text)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    end = b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (size, len(body))
    return body + b"xref\n0 %d\n0000000000 65535 f \n%s%s" % (size, table, end)


def stream(data: bytes, keys: bytes = b"") -> bytes:
    return b"<<%s/Length %d>>stream\n%s\nendstream" % (keys, len(data), data)


def page_of(
    content: str, *resources: bytes, attributes: str = A4, names: str = "", catalog: str = ""
) -> bytes:
    """A page whose resources are named in ``names``; the first of ``resources`` is object 5."""
    return pdf_of(
        f"<</Type/Catalog/Pages 2 0 R{catalog}>>".encode(),
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        f"<</Type/Page/Parent 2 0 R{attributes}/Contents 4 0 R/Resources<<{names}>>>>".encode(),
        stream(content.encode("latin-1")),
        *resources,
    )


def lines_page(*lines: str, attributes: str = A4, catalog: str = "", font: bytes = HELVETICA) -> bytes:
    """Lines of text, from the top left of A4 downwards."""
    shown = " ".join(f"({line}) Tj 0 -20 Td" for line in lines)
    text = f"BT /F 12 Tf 50 780 Td {shown} ET"
    return page_of(text, font, attributes=attributes, names="/Font<</F 5 0 R>>", catalog=catalog)


def scan(picture: Image.Image, dpi: float, *, strips: int = 1, num_covered: int | None = None) -> bytes:
    """A gray picture that fills a page at this resolution, cut into strips; ``num_covered``: only so many."""
    width_pt, height_pt = (side * 72 / dpi for side in picture.size)
    strip_px, strip_pt = picture.height // strips, height_pt / strips
    pictures, drawn = [], ""
    for number in range(strips if num_covered is None else num_covered):
        strip = picture.crop((0, number * strip_px, picture.width, (number + 1) * strip_px))
        keys = (
            b"/Type/XObject/Subtype/Image/Width %d/Height %d/ColorSpace/DeviceGray/BitsPerComponent 8"
            % strip.size
        )
        pictures.append(stream(strip.tobytes(), keys))
        top_pt = height_pt - (number + 1) * strip_pt
        drawn += f"q {width_pt} 0 0 {strip_pt} 0 {top_pt} cm /P{number} Do Q "
    named = " ".join(f"/P{number} {number + 5} 0 R" for number in range(len(pictures)))
    box = f"/MediaBox[0 0 {width_pt} {height_pt}]"
    return page_of(drawn, *pictures, attributes=box, names=f"/XObject<<{named}>>")
