"""Draw the pruning curve and the risk curve as SVG, without a plotting library."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Point = tuple[float, float]
"""A point of the pruning curve: (share kept, error)."""
WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 56, 52
COLOURS = ("#0b62c4", "#c2410c", "#6b7280", "#15803d")
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def line_plot(
    title: str,
    lines: Mapping[str, Sequence[Point]],
    marked: Mapping[str, Point],
    x_range: tuple[float, float],
) -> str:
    """Draw lines with dots, and one ring on each.

    ``lines``: name -> points, joined in the order of x. ``marked``: name -> point of the ring in that colour.
    """
    highest = max(y for points in [*lines.values(), list(marked.values())] for _, y in points)
    step = next((step for step in STEPS if highest / step <= 6), STEPS[-1])
    top_tick = max(1, -int(-highest // step))

    def x_px(x: float) -> float:
        return LEFT + (x - x_range[0]) / (x_range[1] - x_range[0]) * (WIDTH - LEFT - RIGHT)

    def y_px(y: float) -> float:
        return HEIGHT - BOTTOM - y / (top_tick * step) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        f' font-size="13" fill="#1f2937"><title>{title}</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 24, title, weight="bold"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "share of patch tokens kept", anchor="middle"),
        _text(LEFT, TOP - 10, "character error rate", fill="#6b7280"),
    ]
    for tick in range(top_tick + 1):
        y = y_px(tick * step)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e5e7eb"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{tick * step:g}", anchor="end"))
    parts += [
        _text(x_px(tenth / 10), HEIGHT - BOTTOM + 20, f"{tenth / 10:g}", anchor="middle")
        for tenth in range(round(x_range[0] * 10), round(x_range[1] * 10) + 1)
    ]
    for number, ((name, points), colour) in enumerate(zip(lines.items(), COLOURS, strict=False)):
        places = [(x_px(x), y_px(y)) for x, y in sorted(points)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        if name in marked:
            x, y = x_px(marked[name][0]), y_px(marked[name][1])
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="none" stroke="{colour}" stroke-width="2"/>'
            )
        parts.append(_text(WIDTH - RIGHT, TOP + 18 + 18 * number, name, anchor="end", fill=colour))
    if marked:
        below = TOP + 18 + 18 * len(lines)
        parts.append(_text(WIDTH - RIGHT, below, "ring: dynamic ratio", anchor="end", fill="#6b7280"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def risk_plot(figures: Mapping[str, Any]) -> str:
    """Draw pages as dots and the risk curve over them.

    A page stands at its surprise at the low quantile, in nats on a logarithmic scale, and at the share of its
    words that are missing. The curve turns surprise into risk.
    """
    least, most = -4.0, 1.0  # decades of nats
    half_nats, steepness = figures["curve"]["half_nats"], figures["curve"]["steepness"]

    def x_px(nats: float) -> float:
        decades = math.log10(max(nats, 10**least))
        return LEFT + (decades - least) / (most - least) * (WIDTH - LEFT - RIGHT)

    def y_px(share: float) -> float:
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    title = "Risk, and what is missing from pages whose text is known"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        f' font-size="13" fill="#1f2937"><title>{title}</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 24, title, weight="bold"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "nats at the tenth percentile", anchor="middle"),
        _text(LEFT, TOP - 10, "share of words missing (dots), risk (line)", fill="#6b7280"),
    ]
    for fifth in range(6):
        y = y_px(fifth / 5)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e5e7eb"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{fifth / 5:g}", anchor="end"))
    parts += [
        _text(x_px(10.0**decade), HEIGHT - BOTTOM + 20, f"{10.0**decade:g}", anchor="middle")
        for decade in range(int(least), int(most) + 1)
    ]
    for nats, missing, *_ in figures["points"].values():
        colour = COLOURS[1] if missing > figures["bad_share"] else COLOURS[0]
        parts.append(f'<circle cx="{x_px(nats):.1f}" cy="{y_px(missing):.1f}" r="3" fill="{colour}"/>')
    steps = [10 ** (least + (most - least) * step / 100) for step in range(101)]
    path = "L".join(f"{x_px(x):.1f} {y_px(1 / (1 + (half_nats / x) ** steepness)):.1f}" for x in steps)
    parts.append(f'<path d="M{path}" fill="none" stroke="{COLOURS[2]}" stroke-width="2"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", fill: str = "#1f2937", weight: str = "normal"
) -> str:
    halo = 'stroke="#ffffff" stroke-width="4" paint-order="stroke"'
    look = f'text-anchor="{anchor}" fill="{fill}" font-weight="{weight}" {halo}'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{text}</text>'
