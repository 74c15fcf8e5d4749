"""Sixteen everyday objects, each a function of continuous parameters and two colors.

Front is +z, y is up, the unit is about a metre for furniture and arbitrary for the rest: every
cloud is normalised before use, so only proportions matter. ``categories.yaml`` holds the ranges of
the parameters and the words for captions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recon_ray.data.sources.cards import load_facts
from recon_ray.data.sources.procedural.primitives import (
    Color,
    Mesh,
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
Parts = Iterator[tuple[Mesh, Color]]
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
    build: Callable[[Parameters, Color, Color], Parts]
    size: tuple[str, str, str]
    details: tuple[tuple[str, str, str], ...]


def _corners(width: float, depth: float) -> list[tuple[float, float]]:
    return [(x * width / 2, z * depth / 2) for x in (-1, 1) for z in (-1, 1)]


def _airplane(p: Parameters, main: Color, accent: Color) -> Parts:
    r, length, span = p["body"], p["length"], p["span"]
    yield ellipsoid((0, 0, 0), (r, r, length / 2)), main
    root, tip, back = p["chord"], p["chord"] * 0.4, p["sweep"]
    for side in (-1, 1):
        outline = [(0, -root / 2), (span / 2, -back - tip / 2), (span / 2, -back + tip / 2)]
        wing = turn(prism([*outline, (0, root / 2)], 0.03), "x", 90)
        wing = wing[0] * np.array([side, 1, -1]), wing[1]
        yield move(wing, (0, -r * 0.2, length * 0.05)), accent
        engine = turn(cylinder((0, 0, 0), r * 0.45, p["engine"]), "x", 90)
        yield move(engine, (side * span * 0.2, -r * 0.65, 0)), DARK
        yield box((side * span * 0.11, 0, -length * 0.45), (span * 0.22, 0.025, root * 0.5)), accent
    fin = prism([(0, 0), (root * 0.6, 0), (root * 0.25, p["fin"]), (0, p["fin"])], 0.03)
    yield move(turn(fin, "y", -90), (0, r * 0.3, -length * 0.5)), accent


def _bed(p: Parameters, main: Color, accent: Color) -> Parts:
    w, d, h, m = p["width"], p["length"], p["height"], p["mattress"]
    yield box((0, h, 0), (w, 0.1, d)), accent
    yield box((0, h + 0.05 + m / 2, 0), (w * 0.96, m, d * 0.97)), main
    head = p["headboard"]
    yield box((0, h / 2 + head / 2, -d / 2), (w, h + head, 0.07)), accent
    yield box((0, h / 2 + head / 6, d / 2), (w, h + head / 3, 0.06)), accent
    for x, z in _corners(w - 0.1, d - 0.1):
        yield box((x, h / 2, z), (0.09, h, 0.09)), accent
    for side in (-1, 1):
        center = (side * w * 0.24, h + 0.1 + m, -d / 2 + p["pillow"] * 0.8)
        yield ellipsoid(center, (w * 0.2, 0.08, p["pillow"] / 2)), LIGHT


def _bookshelf(p: Parameters, main: Color, accent: Color) -> Parts:
    w, h, d, t = p["width"], p["height"], p["depth"], p["board"]
    for side in (-1, 1):
        yield box((side * (w - t) / 2, h / 2, 0), (t, h, d)), main
    yield box((0, h / 2, -d / 2 + 0.01), (w, h, 0.02)), main
    count = round(p["shelves"])
    gap = (h - t) / count
    for level in range(count + 1):
        yield box((0, t / 2 + level * gap, 0), (w, t, d)), main
    for level in range(count):
        filled = (w - 2 * t) * (0.25 + 0.7 * p["books"] * ((level * 0.618 + p["books"]) % 1.0))
        tall = (gap - t) * (0.6 + 0.3 * ((level * 0.382) % 1.0))
        center = (-w / 2 + t + filled / 2, t + level * gap + tall / 2, -d * 0.1)
        yield box(center, (filled, tall, d * 0.6)), accent if level % 2 else LIGHT


def _bottle(p: Parameters, main: Color, accent: Color) -> Parts:
    r, h, n, nh, s = p["radius"], p["body"], p["neck"], p["neck_height"], p["shoulder"]
    body = [(0, 0), (r * 0.9, 0), (r, 0.05), (r * p["waist"], h * 0.5), (r, h)]
    curve = [(n + (r - n) * np.cos(a) ** 2, h + s * np.sin(a)) for a in (0.4, 0.8, 1.2, np.pi / 2)]
    yield lathe([*body, *curve, (n, h + s + nh), (0, h + s + nh)]), main
    yield cylinder((0, h + s + nh, 0), n * 1.25, 0.12), accent
    band = r * (1 + p["waist"]) / 2 * 1.02
    yield lathe([(band, h * 0.3), (band, h * 0.7)]), LIGHT


def _car(p: Parameters, main: Color, accent: Color) -> Parts:
    d, w, h, wheel = p["length"], p["width"], p["height"], p["wheel"]
    yield box((0, wheel + h / 2, 0), (w, h, d), 0.94), main
    cabin = p["cabin_length"] * d
    center = (0, wheel + h + p["cabin"] / 2, -p["cabin_back"] * d)
    yield box(center, (w * 0.88, p["cabin"], cabin), 0.7), accent
    for x, z in _corners(w, d * 0.62):
        tire = turn(cylinder((0, -0.1, 0), wheel, 0.2), "z", 90)
        yield move(tire, (x, wheel, z)), DARK
    for side in (-1, 1):
        yield ellipsoid((side * w * 0.32, wheel + h * 0.6, d / 2), (0.12, 0.1, 0.05)), LIGHT


def _chair(p: Parameters, main: Color, accent: Color) -> Parts:
    w, d, h, leg, t = p["width"], p["depth"], p["height"], p["leg"], 0.06
    yield box((0, h, 0), (w, t, d)), main
    for x, z in _corners(w - leg, d - leg):
        yield box((x, h / 2, z), (leg, h, leg)), accent
    back = turn(box((0, p["back"] / 2, 0), (w, p["back"], 0.05)), "x", -p["tilt"])
    yield move(back, (0, h, -d / 2 + 0.03)), main
    if p["arms"] > 0.55:
        for side in (-1, 1):
            x, y = side * (w - 0.05) / 2, h + 0.18 + 0.12 * p["arms"]
            yield box((x, y, 0.02), (0.06, 0.04, d * 0.85)), accent
            yield box((x, (y + h) / 2, d * 0.35), (0.05, y - h, 0.05)), accent


def _guitar(p: Parameters, main: Color, accent: Color) -> Parts:
    r, upper, t, neck = p["lower"], p["upper"], p["depth"], p["neck"]
    for radius, y in ((r, 0.0), (r * 0.85, r * p["waist"]), (upper, r * p["waist"] + upper * 0.75)):
        yield move(turn(cylinder((0, -t / 2, 0), radius, t), "x", 90), (0, y, 0)), main
    top = r * p["waist"] + upper * 1.6
    yield box((0, top + neck / 2 - 0.1, t * 0.4), (0.09, neck + 0.2, 0.05)), accent
    yield box((0, top + neck + 0.12, t * 0.35), (p["head"], 0.26, 0.05), 1.2), accent
    hole = turn(cylinder((0, 0, 0), upper * 0.35, 0.02), "x", 90)
    yield move(hole, (0, r * p["waist"], t / 2)), DARK
    yield box((0, -r * 0.3, t / 2 + 0.01), (r * 0.7, 0.07, 0.04)), DARK


def _lamp(p: Parameters, main: Color, accent: Color) -> Parts:
    h, r, sh = p["height"], p["shade"], p["shade_height"]
    yield cylinder((0, 0, 0), p["base"], 0.05, p["base"] * 0.85), accent
    yield cylinder((0, 0.05, 0), p["pole"], h), accent
    upper = r * p["cone"]
    # An open shade has an inside: two surfaces a little apart.
    shade = [(r, 0), (upper, sh), (upper * 0.96, sh), (r * 0.96, 0)]
    yield move(lathe(shade), (0, h - sh * 0.35, 0)), main
    yield ellipsoid((0, h + 0.08, 0), (0.07, 0.1, 0.07)), LIGHT


def _monitor(p: Parameters, main: Color, accent: Color) -> Parts:
    w, h, neck = p["width"], p["height"], p["neck"]
    panel = turn(box((0, h / 2, 0), (w, h, p["depth"])), "x", -p["tilt"])
    screen = turn(box((0, h / 2, p["depth"] / 2), (w * 0.93, h * 0.9, 0.012)), "x", -p["tilt"])
    yield move(panel, (0, neck, 0)), main
    yield move(screen, (0, neck, 0)), DARK
    yield box((0, neck * 0.6, -p["depth"]), (0.1, neck * 1.2, 0.05)), accent
    yield box((0, 0.02, 0), (p["foot"], 0.035, p["foot"] * 0.65)), accent


def _mug(p: Parameters, main: Color, accent: Color) -> Parts:
    r, h, t, top = p["radius"], p["height"], p["wall"], p["flare"]
    outer = [(0, 0), (r, 0), (r * top, h)]
    inner = [(r * top - t, h), (r - t, t), (0, t)]
    yield lathe(outer + inner), main
    angle = np.linspace(-np.pi / 2, np.pi / 2, 14)
    x = r * (1 + top) / 2 - t / 2 + p["handle"] * np.cos(angle)
    y = h * 0.5 + h * p["grip"] * np.sin(angle)
    yield tube(np.stack([x, y, np.zeros_like(x)], axis=1), t * 0.9), accent


def _rocket(p: Parameters, main: Color, accent: Color) -> Parts:
    r, h, nose = p["radius"], p["height"], p["nose"]
    curve = [(r * np.cos(a) ** p["point"], h + nose * np.sin(a)) for a in np.linspace(0, 1.57, 8)]
    yield lathe([(0, 0), (r * 0.85, 0), (r, h * 0.15), (r, h)]), main
    yield lathe([*curve, (0, h + nose)]), accent
    yield cylinder((0, -0.14, 0), r * 0.75, 0.16, r * 0.4), DARK
    fin, reach = p["fin"], p["reach"]
    outline = [(r * 0.8, 0.0), (r + reach, -fin * 0.35), (r + reach, fin * 0.2), (r * 0.8, fin)]
    for quarter in range(4):
        yield turn(prism(outline, 0.04), "y", 90 * quarter), accent
    yield ellipsoid((0, h * 0.75, r * 0.93), (r * 0.35, r * 0.35, 0.06)), LIGHT


def _sailboat(p: Parameters, main: Color, accent: Color) -> Parts:
    d, w, h, mast = p["length"], p["width"], p["hull"], p["mast"]
    deck, faces = ellipsoid((0, 0, 0), (w / 2, h, d / 2))
    deck[:, 1] = np.minimum(deck[:, 1], h * 0.15)
    yield (deck, faces), main
    yield cylinder((0, 0, 0), 0.025, mast), DARK
    sail = [(0.0, 0.15), (p["boom"], 0.15), (0.05, mast * 0.95)]
    yield move(turn(prism(sail, 0.015), "y", 90), (0, 0, -0.04)), LIGHT
    jib = [(0.0, 0.15), (0.0, mast * 0.8), (-p["jib"], 0.15)]
    yield move(turn(prism(jib, 0.015), "y", 90), (0, 0, 0.06)), accent
    yield box((0, h * 0.2, -d * 0.2), (w * 0.5, h * 0.25, d * 0.2)), accent


def _sofa(p: Parameters, main: Color, accent: Color) -> Parts:
    w, d, seat, arm = p["width"], p["depth"], p["seat"], p["arm"]
    yield box((0, seat / 2 + 0.05, 0), (w, seat, d)), main
    yield box((0, seat / 2 + p["back"] / 2, -d / 2), (w, seat + p["back"], 0.22), 0.96), main
    for side in (-1, 1):
        center = (side * (w + arm) / 2, (seat + p["arm_height"]) / 2 + 0.03, -0.05)
        yield box(center, (arm, seat + p["arm_height"], d + 0.1)), main
    count = round(p["cushions"])
    for i in range(count):
        x = ((i + 0.5) / count - 0.5) * w
        yield box((x, seat + 0.1, 0.08), (w / count * 0.94, 0.12, d * 0.8), 0.94), accent


def _table(p: Parameters, main: Color, accent: Color) -> Parts:
    w, d, h, leg, t = p["width"], p["depth"], p["height"], p["leg"], p["top"]
    if p["round"] > 0.6:
        top, faces = cylinder((0, h, 0), 0.5, t)
        yield (top * np.array([w, 1, d]), faces), main
        yield cylinder((0, 0.03, 0), leg, h), accent
        yield cylinder((0, 0, 0), w * 0.28, 0.04), accent
        return
    yield box((0, h + t / 2, 0), (w, t, d)), main
    inset = leg + 0.1 * p["round"]
    for x, z in _corners(w - inset, d - inset):
        yield box((x, h / 2, z), (leg, h, leg), 1.15), accent


def _umbrella(p: Parameters, main: Color, accent: Color) -> Parts:
    r, dome, h = p["radius"], p["dome"], p["height"]
    angle = np.linspace(0, np.pi / 2, 8)
    outer = np.stack([r * np.cos(angle) ** p["bulge"], dome * np.sin(angle)], axis=1)
    inner = np.stack([outer[::-1, 0] * 0.98, outer[::-1, 1] - 0.02], axis=1)
    yield move(lathe(np.concatenate([outer, inner]), 8), (0, h - dome, 0)), main
    yield cylinder((0, 0, 0), 0.025, h + 0.1), DARK
    bend = np.linspace(0, np.pi, 10)
    hook = np.stack([p["hook"] * (1 - np.cos(bend)), -p["hook"] * np.sin(bend), 0 * bend], axis=1)
    yield tube(hook, 0.035), accent


def _vase(p: Parameters, main: Color, accent: Color) -> Parts:
    y = np.linspace(0, 1, 18)
    bulge = np.exp(-(((y - p["belly_at"]) / 0.28) ** 2))
    flare = p["lip"] * np.clip((y - 0.82) / 0.18, 0, 1) ** 2
    radius = p["foot"] + (p["belly"] - p["foot"]) * bulge + flare
    outer = np.stack([radius, y * p["height"]], axis=1)
    inner = np.stack([radius[:3:-1] * 0.9, y[:3:-1] * p["height"]], axis=1)
    bottom = [(0, 0.2 * p["height"])]
    yield lathe(np.concatenate([[(0, 0)], outer, inner, bottom])), main
    ring = p["ring"] * p["height"]
    around = float(np.interp(p["ring"], y, radius)) * 1.03
    yield lathe([(around, ring), (around, ring + 0.07 * p["height"])]), accent


_BUILDERS: dict[str, Callable[[Parameters, Color, Color], Parts]] = {
    "airplane": _airplane, "bed": _bed, "bookshelf": _bookshelf, "bottle": _bottle,
    "car": _car, "chair": _chair, "guitar": _guitar, "lamp": _lamp,
    "monitor": _monitor, "mug": _mug, "rocket": _rocket, "sailboat": _sailboat,
    "sofa": _sofa, "table": _table, "umbrella": _umbrella, "vase": _vase,
}  # fmt: skip
_FACTS = load_facts(Path(__file__).with_name("categories.yaml"))
CATEGORIES = {name: Category(build=build, **_FACTS[name]) for name, build in _BUILDERS.items()}
