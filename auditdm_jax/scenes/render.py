"""Scene graph -> pixels: 64x64 RGB, every thing exactly inside its 16-pixel cell (one vision patch)."""

from functools import cache

import numpy as np

from auditdm_jax.scenes.world import CELL, GRID, SIZE, SPECIALS, Scene, Thing

RGB = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 230),
    "yellow": (240, 210, 20),
    "purple": (140, 40, 180),
    "orange": (250, 130, 10),
    "pink": (255, 120, 190),
}
INK = (15, 15, 15)
PAPER = (250, 250, 250)
_BACKGROUND = {
    "sunny": (200, 228, 250),
    "cloudy": (196, 196, 196),
    "rainy": (150, 166, 186),
    "snowy": (226, 232, 244),
    "night": (44, 46, 84),
}
# Pixel centres relative to the middle of a cell, in pixels: _Y down, _X right, both in [-7.5, 7.5].
_Y, _X = np.mgrid[0:CELL, 0:CELL] - (CELL - 1) / 2
_ROW, _COLUMN = np.mgrid[0:CELL, 0:CELL]
_RADIUS = {"small": 3.2, "medium": 4.9, "large": 6.6}

# 3x5 pixel letters, rows from the top, three bits a row.
_FONT = {
    "a": "25755", "b": "65656", "c": "34443", "d": "65556", "e": "74647", "g": "34553", "h": "55755", "k": "55655",
    "m": "57755", "n": "65555", "o": "25552", "p": "65644", "s": "34216", "t": "72222", "u": "55557", "x": "55255",
    "y": "55222",
}  # fmt: skip
_FLAGS = {
    "arvonia": ("red", "yellow", "rows"),
    "belmar": ("blue", "orange", "columns"),
    "cordia": ("green", "pink", "diagonal"),
    "dravik": ("purple", "yellow", "quarters"),
    "estora": ("orange", "blue", "disc"),
    "fenwick": ("pink", "green", "cross"),
}


def render(scene: Scene) -> np.ndarray:
    """uint8 [64, 64, 3] picture of a scene."""
    cells = np.stack([cell(scene.weather, thing) for thing in scene.cells])
    grid = cells.reshape(GRID, GRID, CELL, CELL, 3)
    return grid.transpose(0, 2, 1, 3, 4).reshape(SIZE, SIZE, 3)


@cache  # about 11,000 different cells of 768 bytes exist
def cell(weather: str, thing: Thing | None) -> np.ndarray:
    """uint8 [16, 16, 3] picture of a cell with a thing or nothing in it; read only."""
    pixels = np.empty((CELL, CELL, 3), np.uint8)
    pixels[:] = _BACKGROUND[weather]
    if weather == "rainy":
        pixels[(_ROW + 2 * _COLUMN) % 8 == 0] = (90, 110, 150)
    elif weather == "snowy":
        pixels[(_ROW % 5 == 2) & (_COLUMN % 5 == 2)] = (255, 255, 255)
    elif weather == "night":
        pixels[(_ROW * 5 + _COLUMN * 3) % 29 == 0] = (250, 250, 210)
    elif weather == "cloudy":
        pixels[(_ROW % 8 < 2) & ((_COLUMN + _ROW) % 8 < 5)] = (222, 222, 222)
    if thing is None:
        return pixels
    if thing.kind == "shape":
        _draw_shape(pixels, thing)
    else:
        _SPECIAL_PAINTERS[thing.kind](pixels, thing.value)
    return pixels


def _draw_shape(pixels: np.ndarray, thing: Thing) -> None:
    mask = shape_mask(thing.shape, _RADIUS[thing.size])
    color = np.array(RGB[thing.color])
    pixels[mask] = color
    second = (
        mask
        & {
            "solid": np.zeros_like(mask),
            "striped": _ROW % 3 == 0,
            "dotted": (_ROW % 3 == 1) & (_COLUMN % 3 == 1),
            "checkered": (_ROW // 2 + _COLUMN // 2) % 2 == 0,
        }[thing.material]
    )
    pixels[second] = (color * 0.45).astype(np.uint8)
    if thing.framed:
        border = (np.abs(_X) > 7) | (np.abs(_Y) > 7)
        pixels[border] = INK
    if thing.barred:
        pixels[_COLUMN % 5 == 2] = (110, 80, 60)


def shape_mask(shape: str, r: float) -> np.ndarray:
    """bool [16, 16]: the pixels of a shape of radius r, centred in its cell."""
    x, y, ax, ay = _X, _Y, np.abs(_X), np.abs(_Y)
    distance = np.hypot(x, y)
    if shape == "circle":
        return distance <= r
    if shape == "square":
        return np.maximum(ax, ay) <= r * 0.88
    if shape == "triangle":
        return (ay <= r) & (ax <= (y + r) * 0.52 + 0.3)
    if shape == "star":
        angle = np.arctan2(x, -y)
        return distance <= r * (0.68 + 0.42 * np.cos(5 * angle))
    if shape == "cross":
        return (np.minimum(ax, ay) <= r * 0.3) & (np.maximum(ax, ay) <= r)
    if shape == "diamond":
        return ax + ay <= r * 1.05
    if shape == "ring":
        return (distance <= r) & (distance > r * 0.55)
    lobes = np.hypot(ax - r * 0.48, y + r * 0.35) <= r * 0.55
    point = (y >= -r * 0.3) & (ax <= (r - y) * 0.75) & (y <= r)
    return lobes | point


def _person(pixels: np.ndarray, action: str) -> None:
    drop = 2 if action == "sitting" else -2 if action == "jumping" else 0
    head = np.hypot(_X, _Y + 4.5 - drop) <= 2
    body = (np.abs(_X) <= 0.5) & (-3 + drop <= _Y) & (2 + drop >= _Y)
    arm = np.abs(_Y + 1 - drop) <= 0.5
    limbs = {
        "standing": [(arm & (np.abs(_X) <= 3)), (np.abs(np.abs(_X) - 1.5) <= 0.5) & (_Y > 2) & (_Y < 7)],
        "jumping": [np.abs(np.abs(_X) + (_Y + 2)) <= 0.8, np.abs(np.abs(_X) - (_Y + 0.5)) <= 0.8],
        "running": [np.abs(_X + _Y) <= 0.8, np.abs(_X - 1.2 * (_Y - 2)) <= 1.0],
        "waving": [(_X > 0) & (np.abs(_X + _Y + 2) <= 0.9), (np.abs(np.abs(_X) - 1.5) <= 0.5) & (_Y > 2) & (_Y < 7)],
        "sitting": [arm & (np.abs(_X) <= 3), (np.abs(_Y - 4.5) <= 0.5) & (_X >= 0) & (_X < 5)],
    }[action]
    lower = -4.5 + drop < _Y if action != "waving" else _Y > -7
    upper_limbs, legs = limbs
    legs = legs & ((_Y > 1) if action in ("jumping", "running") else True) & (_Y < 7)
    pixels[head | body | (upper_limbs & lower & (_Y < 2) & (np.abs(_X) < 5)) | legs] = INK


def _face(pixels: np.ndarray, emotion: str) -> None:
    pixels[np.hypot(_X, _Y) <= 7] = (255, 215, 120)
    pixels[(np.abs(np.abs(_X) - 2.5) <= 0.5) & (np.abs(_Y + 1.5) <= 1)] = INK
    ax = np.abs(_X)
    mouth = {
        "happy": (np.abs(_Y - (4 - ax * ax / 6)) <= 0.6) & (ax <= 4),
        "sad": (np.abs(_Y - (2.5 + ax * ax / 6)) <= 0.6) & (ax <= 4),
        "angry": ((np.abs(_Y - 3.5) <= 0.5) & (ax <= 3)) | ((np.abs(_Y + 5 - ax * 0.6 + 0.5) <= 0.6) & (ax <= 4)),
        "surprised": np.hypot(_X, _Y - 3.5) <= 1.8,
    }[emotion]
    pixels[mouth] = INK


def _clock(pixels: np.ndarray, hour: str) -> None:
    distance = np.hypot(_X, _Y)
    pixels[distance <= 7.6] = INK
    pixels[distance <= 6.6] = PAPER
    angle = 2 * np.pi * int(hour) / 12
    along = _X * np.sin(angle) - _Y * np.cos(angle)
    across = np.abs(_X * np.cos(angle) + _Y * np.sin(angle))
    pixels[(across <= 0.9) & (along >= -0.5) & (along <= 6)] = RGB["red"]


def _sign(pixels: np.ndarray, meaning: str) -> None:
    ax, ay = np.abs(_X), np.abs(_Y)
    board = np.maximum(ax, ay) <= 6.6
    if meaning == "stop":
        pixels[(np.maximum(ax, ay) <= 6.6) & (ax + ay <= 9.5)] = RGB["red"]
        pixels[(ay <= 1) & (ax <= 4)] = PAPER
    elif meaning == "yield":
        pixels[(ay <= 6) & (ax <= (6 - _Y) * 0.58 + 0.4)] = RGB["red"]
        pixels[(_Y >= -4) & (_Y <= 3) & (ax <= (3 - _Y) * 0.5)] = PAPER
    elif meaning == "crossing":
        pixels[ax + ay <= 7.5] = RGB["yellow"]
        pixels[(ax + ay <= 5.5) & (_COLUMN % 3 == 0)] = INK
    else:
        pixels[board] = RGB["blue"]
        _letters(pixels, "p" if meaning == "parking" else "h", 6)


def _letters(pixels: np.ndarray, word: str, left: int) -> None:
    color = INK if len(word) > 1 else PAPER
    for index, letter in enumerate(word):
        for row, bits in enumerate(_FONT[letter]):
            for column in range(3):
                if int(bits) >> (2 - column) & 1:
                    pixels[5 + row, left + 4 * index + column] = color


def _label(pixels: np.ndarray, word: str) -> None:
    pixels[3:12, 1:15] = PAPER
    _letters(pixels, word, 2)


def _flag(pixels: np.ndarray, country: str) -> None:
    first, second, pattern = _FLAGS[country]
    board = (np.abs(_Y) <= 5) & (np.abs(_X) <= 7)
    pixels[board] = RGB[first]
    over = {
        "rows": np.abs(_Y) <= 1.5,
        "columns": np.abs(_X) <= 2,
        "diagonal": np.abs(_X - _Y) <= 2,
        "quarters": (_X > 0) == (_Y > 0),
        "disc": np.hypot(_X, _Y) <= 3,
        "cross": (np.abs(_Y) <= 1) | (np.abs(_X + 2) <= 1),
    }[pattern]
    pixels[board & over] = RGB[second]


def _dot(pixels: np.ndarray, color: str) -> None:
    pixels[10:13, 3:6] = RGB[color]


_SPECIAL_PAINTERS = {
    "person": _person,
    "face": _face,
    "clock": _clock,
    "sign": _sign,
    "label": _label,
    "flag": _flag,
    "dot": _dot,
}
assert set(_SPECIAL_PAINTERS) == set(SPECIALS)
