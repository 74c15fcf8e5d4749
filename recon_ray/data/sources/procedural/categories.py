"""Sixteen everyday objects, each a function of continuous parameters and two colors.

Front is +z, y is up, the unit is about a metre for furniture and arbitrary for the rest: every
cloud is normalised before use, so only proportions matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from recon_ray.data.sources.procedural.primitives import (
    Assembly,
    Color,
    box,
    cylinder,
    ellipsoid,
    lathe,
    move,
    prism,
    tube,
    turn,
)

Parameters = Mapping[str, float]
DARK: Color = (45, 45, 50)
LIGHT: Color = (235, 232, 222)


@dataclass(frozen=True)
class Category:
    """A kind of object.

    Attributes:
        ranges: Lowest and highest value of every parameter.
        build: Makes the parts from the parameters, the main color and the accent color.
        size: Parameter, and the words for its lower and upper third.
        details: Parameters, and the phrases for their lower and upper third.
    """

    ranges: Mapping[str, tuple[float, float]]
    build: Callable[[Parameters, Color, Color], Assembly]
    size: tuple[str, str, str]
    details: tuple[tuple[str, str, str], ...]


def _corners(width: float, depth: float) -> list[tuple[float, float]]:
    return [(x * width / 2, z * depth / 2) for x in (-1, 1) for z in (-1, 1)]


def _airplane(p: Parameters, main: Color, accent: Color) -> Assembly:
    plane = Assembly()
    r, length, span = p["body"], p["length"], p["span"]
    plane.add(ellipsoid((0, 0, 0), (r, r, length / 2)), main)
    root, tip, back = p["chord"], p["chord"] * 0.4, p["sweep"]
    for side in (-1, 1):
        outline = [(0, -root / 2), (span / 2, -back - tip / 2), (span / 2, -back + tip / 2)]
        wing = turn(prism([*outline, (0, root / 2)], 0.03), "x", 90)
        wing = wing[0] * np.array([side, 1, -1]), wing[1]
        plane.add(move(wing, (0, -r * 0.2, length * 0.05)), accent)
        engine = turn(cylinder((0, 0, 0), r * 0.45, p["engine"]), "x", 90)
        plane.add(move(engine, (side * span * 0.2, -r * 0.65, 0)), DARK)
        tail = box((side * span * 0.11, 0, -length * 0.45), (span * 0.22, 0.025, root * 0.5))
        plane.add(tail, accent)
    fin = prism([(0, 0), (root * 0.6, 0), (root * 0.25, p["fin"]), (0, p["fin"])], 0.03)
    plane.add(move(turn(fin, "y", -90), (0, r * 0.3, -length * 0.5)), accent)
    return plane


def _bed(p: Parameters, main: Color, accent: Color) -> Assembly:
    bed = Assembly()
    w, d, h, m = p["width"], p["length"], p["height"], p["mattress"]
    bed.add(box((0, h, 0), (w, 0.1, d)), accent)
    bed.add(box((0, h + 0.05 + m / 2, 0), (w * 0.96, m, d * 0.97)), main)
    head = p["headboard"]
    bed.add(box((0, h / 2 + head / 2, -d / 2), (w, h + head, 0.07)), accent)
    bed.add(box((0, h / 2 + head / 6, d / 2), (w, h + head / 3, 0.06)), accent)
    for x, z in _corners(w - 0.1, d - 0.1):
        bed.add(box((x, h / 2, z), (0.09, h, 0.09)), accent)
    for side in (-1, 1):
        center = (side * w * 0.24, h + 0.1 + m, -d / 2 + p["pillow"] * 0.8)
        bed.add(ellipsoid(center, (w * 0.2, 0.08, p["pillow"] / 2)), LIGHT)
    return bed


def _bookshelf(p: Parameters, main: Color, accent: Color) -> Assembly:
    shelf = Assembly()
    w, h, d, t = p["width"], p["height"], p["depth"], p["board"]
    for side in (-1, 1):
        shelf.add(box((side * (w - t) / 2, h / 2, 0), (t, h, d)), main)
    shelf.add(box((0, h / 2, -d / 2 + 0.01), (w, h, 0.02)), main)
    count = round(p["shelves"])
    gap = (h - t) / count
    for level in range(count + 1):
        shelf.add(box((0, t / 2 + level * gap, 0), (w, t, d)), main)
    for level in range(count):
        filled = (w - 2 * t) * (0.25 + 0.7 * p["books"] * ((level * 0.618 + p["books"]) % 1.0))
        tall = (gap - t) * (0.6 + 0.3 * ((level * 0.382) % 1.0))
        center = (-w / 2 + t + filled / 2, t + level * gap + tall / 2, -d * 0.1)
        shelf.add(box(center, (filled, tall, d * 0.6)), accent if level % 2 else LIGHT)
    return shelf


def _bottle(p: Parameters, main: Color, accent: Color) -> Assembly:
    bottle = Assembly()
    r, h, n, nh, s = p["radius"], p["body"], p["neck"], p["neck_height"], p["shoulder"]
    body = [(0, 0), (r * 0.9, 0), (r, 0.05), (r * p["waist"], h * 0.5), (r, h)]
    curve = [(n + (r - n) * np.cos(a) ** 2, h + s * np.sin(a)) for a in (0.4, 0.8, 1.2, np.pi / 2)]
    bottle.add(lathe([*body, *curve, (n, h + s + nh), (0, h + s + nh)]), main)
    bottle.add(cylinder((0, h + s + nh, 0), n * 1.25, 0.12), accent)
    band = r * (1 + p["waist"]) / 2 * 1.02
    bottle.add(lathe([(band, h * 0.3), (band, h * 0.7)]), LIGHT)
    return bottle


def _car(p: Parameters, main: Color, accent: Color) -> Assembly:
    car = Assembly()
    d, w, h, wheel = p["length"], p["width"], p["height"], p["wheel"]
    car.add(box((0, wheel + h / 2, 0), (w, h, d), 0.94), main)
    cabin = p["cabin_length"] * d
    center = (0, wheel + h + p["cabin"] / 2, -p["cabin_back"] * d)
    car.add(box(center, (w * 0.88, p["cabin"], cabin), 0.7), accent)
    for x, z in _corners(w, d * 0.62):
        tire = turn(cylinder((0, -0.1, 0), wheel, 0.2), "z", 90)
        car.add(move(tire, (x, wheel, z)), DARK)
    for side in (-1, 1):
        car.add(ellipsoid((side * w * 0.32, wheel + h * 0.6, d / 2), (0.12, 0.1, 0.05)), LIGHT)
    return car


def _chair(p: Parameters, main: Color, accent: Color) -> Assembly:
    chair = Assembly()
    w, d, h, leg, t = p["width"], p["depth"], p["height"], p["leg"], 0.06
    chair.add(box((0, h, 0), (w, t, d)), main)
    for x, z in _corners(w - leg, d - leg):
        chair.add(box((x, h / 2, z), (leg, h, leg)), accent)
    back = turn(box((0, p["back"] / 2, 0), (w, p["back"], 0.05)), "x", -p["tilt"])
    chair.add(move(back, (0, h, -d / 2 + 0.03)), main)
    if p["arms"] > 0.55:
        for side in (-1, 1):
            x, y = side * (w - 0.05) / 2, h + 0.18 + 0.12 * p["arms"]
            chair.add(box((x, y, 0.02), (0.06, 0.04, d * 0.85)), accent)
            chair.add(box((x, (y + h) / 2, d * 0.35), (0.05, y - h, 0.05)), accent)
    return chair


def _guitar(p: Parameters, main: Color, accent: Color) -> Assembly:
    guitar = Assembly()
    r, upper, t, neck = p["lower"], p["upper"], p["depth"], p["neck"]
    for radius, y in ((r, 0.0), (r * 0.85, r * p["waist"]), (upper, r * p["waist"] + upper * 0.75)):
        guitar.add(turn(cylinder((0, -t / 2, 0), radius, t), "x", 90), main)
        guitar.parts[-1] = (*move(guitar.parts[-1][:2], (0, y, 0)), main)
    top = r * p["waist"] + upper * 1.6
    guitar.add(box((0, top + neck / 2 - 0.1, t * 0.4), (0.09, neck + 0.2, 0.05)), accent)
    guitar.add(box((0, top + neck + 0.12, t * 0.35), (p["head"], 0.26, 0.05), 1.2), accent)
    hole = turn(cylinder((0, 0, 0), upper * 0.35, 0.02), "x", 90)
    guitar.add(move(hole, (0, r * p["waist"], t / 2)), DARK)
    guitar.add(box((0, -r * 0.3, t / 2 + 0.01), (r * 0.7, 0.07, 0.04)), DARK)
    return guitar


def _lamp(p: Parameters, main: Color, accent: Color) -> Assembly:
    lamp = Assembly()
    h, r, sh = p["height"], p["shade"], p["shade_height"]
    lamp.add(cylinder((0, 0, 0), p["base"], 0.05, p["base"] * 0.85), accent)
    lamp.add(cylinder((0, 0.05, 0), p["pole"], h), accent)
    upper = r * p["cone"]
    # An open shade has an inside: two surfaces a little apart.
    shade = [(r, 0), (upper, sh), (upper * 0.96, sh), (r * 0.96, 0)]
    lamp.add(move(lathe(shade), (0, h - sh * 0.35, 0)), main)
    lamp.add(ellipsoid((0, h + 0.08, 0), (0.07, 0.1, 0.07)), LIGHT)
    return lamp


def _monitor(p: Parameters, main: Color, accent: Color) -> Assembly:
    monitor = Assembly()
    w, h, neck = p["width"], p["height"], p["neck"]
    panel = turn(box((0, h / 2, 0), (w, h, p["depth"])), "x", -p["tilt"])
    screen = turn(box((0, h / 2, p["depth"] / 2), (w * 0.93, h * 0.9, 0.012)), "x", -p["tilt"])
    monitor.add(move(panel, (0, neck, 0)), main)
    monitor.add(move(screen, (0, neck, 0)), DARK)
    monitor.add(box((0, neck * 0.6, -p["depth"]), (0.1, neck * 1.2, 0.05)), accent)
    monitor.add(box((0, 0.02, 0), (p["foot"], 0.035, p["foot"] * 0.65)), accent)
    return monitor


def _mug(p: Parameters, main: Color, accent: Color) -> Assembly:
    mug = Assembly()
    r, h, t, top = p["radius"], p["height"], p["wall"], p["flare"]
    outer = [(0, 0), (r, 0), (r * top, h)]
    inner = [(r * top - t, h), (r - t, t), (0, t)]
    mug.add(lathe(outer + inner), main)
    angle = np.linspace(-np.pi / 2, np.pi / 2, 14)
    x = r * (1 + top) / 2 - t / 2 + p["handle"] * np.cos(angle)
    y = h * 0.5 + h * p["grip"] * np.sin(angle)
    mug.add(tube(np.stack([x, y, np.zeros_like(x)], axis=1), t * 0.9), accent)
    return mug


def _rocket(p: Parameters, main: Color, accent: Color) -> Assembly:
    rocket = Assembly()
    r, h, nose = p["radius"], p["height"], p["nose"]
    curve = [(r * np.cos(a) ** p["point"], h + nose * np.sin(a)) for a in np.linspace(0, 1.57, 8)]
    rocket.add(lathe([(0, 0), (r * 0.85, 0), (r, h * 0.15), (r, h)]), main)
    rocket.add(lathe([*curve, (0, h + nose)]), accent)
    rocket.add(cylinder((0, -0.14, 0), r * 0.75, 0.16, r * 0.4), DARK)
    fin, reach = p["fin"], p["reach"]
    outline = [(r * 0.8, 0.0), (r + reach, -fin * 0.35), (r + reach, fin * 0.2), (r * 0.8, fin)]
    for quarter in range(4):
        rocket.add(turn(prism(outline, 0.04), "y", 90 * quarter), accent)
    rocket.add(ellipsoid((0, h * 0.75, r * 0.93), (r * 0.35, r * 0.35, 0.06)), LIGHT)
    return rocket


def _sailboat(p: Parameters, main: Color, accent: Color) -> Assembly:
    boat = Assembly()
    d, w, h, mast = p["length"], p["width"], p["hull"], p["mast"]
    deck, faces = ellipsoid((0, 0, 0), (w / 2, h, d / 2))
    deck[:, 1] = np.minimum(deck[:, 1], h * 0.15)
    boat.add((deck, faces), main)
    boat.add(cylinder((0, 0, 0), 0.025, mast), DARK)
    sail = [(0.0, 0.15), (p["boom"], 0.15), (0.05, mast * 0.95)]
    boat.add(move(turn(prism(sail, 0.015), "y", 90), (0, 0, -0.04)), LIGHT)
    jib = [(0.0, 0.15), (0.0, mast * 0.8), (-p["jib"], 0.15)]
    boat.add(move(turn(prism(jib, 0.015), "y", 90), (0, 0, 0.06)), accent)
    boat.add(box((0, h * 0.2, -d * 0.2), (w * 0.5, h * 0.25, d * 0.2)), accent)
    return boat


def _sofa(p: Parameters, main: Color, accent: Color) -> Assembly:
    sofa = Assembly()
    w, d, seat, arm = p["width"], p["depth"], p["seat"], p["arm"]
    sofa.add(box((0, seat / 2 + 0.05, 0), (w, seat, d)), main)
    sofa.add(box((0, seat / 2 + p["back"] / 2, -d / 2), (w, seat + p["back"], 0.22), 0.96), main)
    for side in (-1, 1):
        center = (side * (w + arm) / 2, (seat + p["arm_height"]) / 2 + 0.03, -0.05)
        sofa.add(box(center, (arm, seat + p["arm_height"], d + 0.1)), main)
    count = round(p["cushions"])
    for i in range(count):
        x = ((i + 0.5) / count - 0.5) * w
        sofa.add(box((x, seat + 0.1, 0.08), (w / count * 0.94, 0.12, d * 0.8), 0.94), accent)
    return sofa


def _table(p: Parameters, main: Color, accent: Color) -> Assembly:
    table = Assembly()
    w, d, h, leg, t = p["width"], p["depth"], p["height"], p["leg"], p["top"]
    if p["round"] > 0.6:
        top, faces = cylinder((0, h, 0), 0.5, t)
        table.add((top * np.array([w, 1, d]), faces), main)
        table.add(cylinder((0, 0.03, 0), leg, h), accent)
        table.add(cylinder((0, 0, 0), w * 0.28, 0.04), accent)
        return table
    table.add(box((0, h + t / 2, 0), (w, t, d)), main)
    inset = leg + 0.1 * p["round"]
    for x, z in _corners(w - inset, d - inset):
        table.add(box((x, h / 2, z), (leg, h, leg), 1.15), accent)
    return table


def _umbrella(p: Parameters, main: Color, accent: Color) -> Assembly:
    umbrella = Assembly()
    r, dome, h = p["radius"], p["dome"], p["height"]
    angle = np.linspace(0, np.pi / 2, 8)
    outer = np.stack([r * np.cos(angle) ** p["bulge"], dome * np.sin(angle)], axis=1)
    inner = np.stack([outer[::-1, 0] * 0.98, outer[::-1, 1] - 0.02], axis=1)
    umbrella.add(move(lathe(np.concatenate([outer, inner]), 8), (0, h - dome, 0)), main)
    umbrella.add(cylinder((0, 0, 0), 0.025, h + 0.1), DARK)
    bend = np.linspace(0, np.pi, 10)
    hook = np.stack([p["hook"] * (1 - np.cos(bend)), -p["hook"] * np.sin(bend), 0 * bend], axis=1)
    umbrella.add(tube(hook, 0.035), accent)
    return umbrella


def _vase(p: Parameters, main: Color, accent: Color) -> Assembly:
    vase = Assembly()
    y = np.linspace(0, 1, 18)
    bulge = np.exp(-(((y - p["belly_at"]) / 0.28) ** 2))
    flare = p["lip"] * np.clip((y - 0.82) / 0.18, 0, 1) ** 2
    radius = p["foot"] + (p["belly"] - p["foot"]) * bulge + flare
    outer = np.stack([radius, y * p["height"]], axis=1)
    inner = np.stack([radius[:3:-1] * 0.9, y[:3:-1] * p["height"]], axis=1)
    bottom = [(0, 0.2 * p["height"])]
    vase.add(lathe(np.concatenate([[(0, 0)], outer, inner, bottom])), main)
    ring = p["ring"] * p["height"]
    around = float(np.interp(p["ring"], y, radius)) * 1.03
    vase.add(lathe([(around, ring), (around, ring + 0.07 * p["height"])]), accent)
    return vase


CATEGORIES: dict[str, Category] = {
    "airplane": Category(
        {"body": (0.11, 0.24), "length": (1.6, 2.6), "span": (1.5, 2.8), "chord": (0.3, 0.6)}
        | {"sweep": (0.0, 0.5), "fin": (0.25, 0.55), "engine": (0.2, 0.4)},
        _airplane,
        ("length", "short", "long"),
        (("span", "narrow wings", "wide wings"), ("fin", "a low fin", "a high fin")),
    ),
    "bed": Category(
        {"width": (0.9, 2.0), "length": (1.8, 2.3), "height": (0.2, 0.5), "mattress": (0.12, 0.35)}
        | {"headboard": (0.3, 1.0), "pillow": (0.3, 0.5)},
        _bed,
        ("width", "narrow", "wide"),
        (
            ("headboard", "a low headboard", "a high headboard"),
            ("height", "short legs", "long legs"),
        ),
    ),
    "bookshelf": Category(
        {"width": (0.6, 1.5), "height": (1.1, 2.3), "depth": (0.25, 0.5), "board": (0.03, 0.07)}
        | {"shelves": (2.5, 6.49), "books": (0.2, 1.0)},
        _bookshelf,
        ("height", "low", "tall"),
        (("shelves", "few shelves", "many shelves"), ("books", "few books", "many books")),
    ),
    "bottle": Category(
        {"radius": (0.25, 0.5), "body": (0.8, 1.6), "neck": (0.08, 0.16)}
        | {"neck_height": (0.15, 0.6), "shoulder": (0.15, 0.5), "waist": (0.75, 1.0)},
        _bottle,
        ("body", "short", "tall"),
        (("neck_height", "a short neck", "a long neck"), ("radius", "a slim body", "a wide body")),
    ),
    "car": Category(
        {"length": (2.6, 4.4), "width": (1.3, 1.9), "height": (0.45, 0.75), "wheel": (0.25, 0.42)}
        | {"cabin": (0.4, 0.85), "cabin_length": (0.35, 0.75), "cabin_back": (0.0, 0.12)},
        _car,
        ("length", "short", "long"),
        (("wheel", "small wheels", "big wheels"), ("cabin", "a low roof", "a high roof")),
    ),
    "chair": Category(
        {"width": (0.4, 0.7), "depth": (0.4, 0.65), "height": (0.35, 0.7), "leg": (0.025, 0.09)}
        | {"back": (0.3, 0.9), "tilt": (0.0, 18.0), "arms": (0.0, 1.0)},
        _chair,
        ("back", "low", "tall"),
        (("leg", "thin legs", "thick legs"), ("arms", "no arms", "arms")),
    ),
    "guitar": Category(
        {"lower": (0.4, 0.6), "upper": (0.28, 0.42), "depth": (0.12, 0.28), "waist": (0.4, 0.65)}
        | {"neck": (0.8, 1.4), "head": (0.15, 0.26)},
        _guitar,
        ("lower", "slim", "large"),
        (("neck", "a short neck", "a long neck"), ("depth", "a flat body", "a deep body")),
    ),
    "lamp": Category(
        {"height": (0.6, 1.8), "base": (0.16, 0.34), "pole": (0.02, 0.06), "shade": (0.22, 0.5)}
        | {"shade_height": (0.22, 0.5), "cone": (0.35, 0.95)},
        _lamp,
        ("height", "short", "tall"),
        (("shade", "a small shade", "a wide shade"), ("base", "a small foot", "a broad foot")),
    ),
    "monitor": Category(
        {"width": (0.8, 1.6), "height": (0.5, 0.9), "depth": (0.04, 0.16), "neck": (0.15, 0.4)}
        | {"foot": (0.3, 0.7), "tilt": (0.0, 15.0)},
        _monitor,
        ("width", "small", "wide"),
        (("neck", "a short stand", "a high stand"), ("depth", "a thin panel", "a thick panel")),
    ),
    "mug": Category(
        {"radius": (0.3, 0.5), "height": (0.5, 1.1), "wall": (0.04, 0.08), "flare": (0.85, 1.25)}
        | {"handle": (0.18, 0.36), "grip": (0.22, 0.36)},
        _mug,
        ("height", "low", "tall"),
        (("handle", "a small handle", "a big handle"), ("flare", "a narrow rim", "a wide rim")),
    ),
    "rocket": Category(
        {"radius": (0.16, 0.34), "height": (1.1, 2.2), "nose": (0.3, 0.8), "point": (0.6, 1.4)}
        | {"fin": (0.35, 0.8), "reach": (0.15, 0.45)},
        _rocket,
        ("height", "short", "tall"),
        (("reach", "small fins", "big fins"), ("nose", "a blunt nose", "a pointed nose")),
    ),
    "sailboat": Category(
        {"length": (1.5, 2.6), "width": (0.45, 0.9), "hull": (0.25, 0.5), "mast": (1.3, 2.5)}
        | {"boom": (0.5, 1.0), "jib": (0.3, 0.8)},
        _sailboat,
        ("length", "short", "long"),
        (("mast", "a low mast", "a high mast"), ("boom", "a small sail", "a large sail")),
    ),
    "sofa": Category(
        {"width": (1.1, 2.5), "depth": (0.7, 1.0), "seat": (0.25, 0.42), "back": (0.35, 0.7)}
        | {"arm": (0.1, 0.32), "arm_height": (0.12, 0.35), "cushions": (1.5, 3.49)},
        _sofa,
        ("width", "small", "wide"),
        (("back", "a low back", "a high back"), ("arm", "thin arms", "thick arms")),
    ),
    "table": Category(
        {"width": (0.8, 2.0), "depth": (0.6, 1.1), "height": (0.4, 1.0), "leg": (0.04, 0.12)}
        | {"top": (0.03, 0.1), "round": (0.0, 1.0)},
        _table,
        ("height", "low", "tall"),
        (("leg", "thin legs", "thick legs"), ("width", "a small top", "a wide top")),
    ),
    "umbrella": Category(
        {"radius": (0.6, 1.1), "dome": (0.25, 0.6), "height": (1.0, 1.8), "bulge": (0.6, 1.2)}
        | {"hook": (0.06, 0.14)},
        _umbrella,
        ("height", "short", "long"),
        (("dome", "a flat canopy", "a domed canopy"), ("hook", "a small hook", "a big hook")),
    ),
    "vase": Category(
        {"height": (0.8, 1.8), "foot": (0.14, 0.3), "belly": (0.32, 0.6), "belly_at": (0.25, 0.65)}
        | {"lip": (0.0, 0.2), "ring": (0.15, 0.8)},
        _vase,
        ("height", "short", "tall"),
        (("belly", "a slim belly", "a round belly"), ("lip", "a straight rim", "a flared rim")),
    ),
}
