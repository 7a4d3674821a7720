"""Panels of lines on logarithmic axes, as SVG text."""
import math

WIDTH, HEIGHT, LEFT, TOP = 250, 190, 46, 30
COLOURS = ["#1b6ca8", "#c8553d", "#3c8d5a", "#8a5aa8"]


def ticks(low, high):
    """1, 2 and 5 times powers of ten inside the range; its ends where that is fewer than two."""
    found = [m * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in (1, 2, 5) if low * 0.999 <= m * 10.0**e <= high * 1.001]
    return found if len(found) > 1 else [low, high]


def panel(title, x_label, lines, left, top):
    """`lines`: (name, is_dashed, colour index, [(x, low, middle, high)]); where low and high differ a bar shows them."""
    xs = sorted({x for line in lines for x, *_ in line[3]})
    values = [value for line in lines for _, *rest in line[3] for value in rest]
    low, high = min(values) / 1.15, max(values) * 1.15
    x_range = math.log(xs[-1] / xs[0]) or 1.0
    place_x = lambda x: left + WIDTH * math.log(x / xs[0]) / x_range
    place_y = lambda y: top + HEIGHT - HEIGHT * math.log(y / low) / math.log(high / low)
    out = [f'<text x="{left + WIDTH / 2}" y="{top - 10}" text-anchor="middle" font-weight="bold">{title}</text>',
           f'<text x="{left + WIDTH / 2}" y="{top + HEIGHT + 32}" text-anchor="middle">{x_label}</text>']
    for x in xs:
        out.append(f'<path d="M{place_x(x):.1f} {top}V{top + HEIGHT}" stroke="#ddd"/><text x="{place_x(x):.1f}" y="{top + HEIGHT + 15}" text-anchor="middle">{x:g}</text>')
    for y in ticks(low, high):
        out.append(f'<path d="M{left} {place_y(y):.1f}H{left + WIDTH}" stroke="#ddd"/><text x="{left - 5}" y="{place_y(y) + 4:.1f}" text-anchor="end">{y:.3g}</text>')
    for row, (name, is_dashed, colour, points) in enumerate(lines):
        stroke = f'stroke="{COLOURS[colour % len(COLOURS)]}" stroke-width="2" fill="none"' + (' stroke-dasharray="6 4"' if is_dashed else "")
        path = "L".join(f"{place_x(x):.1f} {place_y(middle):.1f}" for x, _, middle, _ in points)
        out.append(f'<path d="M{path}" {stroke}/>')
        out += [f'<path d="M{place_x(x):.1f} {place_y(a):.1f}V{place_y(b):.1f}" {stroke}/>' for x, a, _, b in points if a < b]
        y = top + HEIGHT + 50 + 15 * row
        out.append(f'<path d="M{left} {y - 4}h28" {stroke}/><text x="{left + 34}" y="{y}">{name}</text>')
    return "".join(out)


def plot(panels):
    """`panels`: (title, x label, lines), side by side."""
    rows = max(len(lines) for _, _, lines in panels)
    width, height = len(panels) * (WIDTH + LEFT + 24), TOP + HEIGHT + 56 + 15 * rows
    body = "\n".join(panel(*part, LEFT + i * (WIDTH + LEFT + 24), TOP) for i, part in enumerate(panels))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="sans-serif" font-size="12">\n'
            f'<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n')
