"""Images and per-pixel labels made by formula, to pretrain a small backbone on.

Nothing in them comes from photographs, fonts or handwriting. Each image holds several objects
over a texture; every pixel is labelled with the class of the object or the texture it shows, so
that one image gives many labels. A class is a set of parameters of one formula; every instance
varies them a little. The families and where the idea comes from:

- iterated function systems (fractals): FractalDB, Kataoka et al., "Pre-training without Natural
  Images", ACCV 2020, arXiv 2101.08515;
- radial contours: RCDB, Kataoka et al., "Replacing Labeled Real-image Datasets with Auto-generated
  Contours", CVPR 2022, arXiv 2206.09132;
- labels for every pixel: SegRCDB, Shinoda et al., "SegRCDB: Semantic Segmentation via
  Formula-Driven Supervised Learning", ICCV 2023, arXiv 2309.17083;
- Lissajous figures, strokes whose curvature is a Fourier series, and superformula shapes
  (J. Gielis, "A generic geometric transformation that unifies a wide range of natural and
  abstract shapes", American Journal of Botany 90(3), 2003) are added here in the same way.
"""

import functools

import cv2
import numpy as np

FORMULA_VERSION = 2
"""Raised whenever the same seed would give other images."""

TEXTURES = ('noise', 'stripes', 'checks', 'dots', 'gradient', 'voronoi', 'waves', 'marble')
NUM_FRACTALS = 4
LISSAJOUS = ((1, 2), (1, 3), (2, 3), (3, 4))
NUM_STROKES = 20
SUPERFORMULA = ((3, 0.5, 1.5, 1.5), (4, 0.5, 0.5, 0.5), (5, 2, 7, 7), (6, 1, 4, 8),
                (7, 3, 4, 17), (2, 1, 1, 1))  # (m, n1, n2, n3)
RADIAL = tuple((n, rings) for n in (3, 4, 5, 8) for rings in (1, 3))  # (vertices, contours)

CLASSES = (
    tuple(f'texture-{name}' for name in TEXTURES)
    + tuple(f'fractal-{i}' for i in range(NUM_FRACTALS))
    + tuple(f'radial-{n}x{rings}' for n, rings in RADIAL)
    + tuple(f'lissajous-{a}:{b}' for a, b in LISSAJOUS)
    + tuple(f'stroke-{i}' for i in range(NUM_STROKES))
    + tuple(f'superformula-{i}' for i in range(len(SUPERFORMULA)))
)
"""Name of every label id: textures first, so that a background is labelled too."""

SPLITS = {'training': 16000, 'validation': 500}
"""Number of images of every split."""


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Random values on a coarse grid, smoothly enlarged.

    Args:
        rng: Source of randomness.
        size: Height and width of the result, pixels.
        cells: Height and width of the coarse grid.

    Returns:
        (size, size) float32 in [0, 1].
    """
    grid = rng.random((cells, cells), dtype=np.float32)
    return np.clip(cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1)


def texture_values(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """One grey-level texture.

    Args:
        rng: Source of randomness.
        name: One of `TEXTURES`.
        size: Height and width, pixels.

    Returns:
        (size, size) float32 in [0, 1].
    """
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    angle = rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    frequency = rng.uniform(3, 12)
    phase = rng.uniform(0, 2 * np.pi)
    if name == 'noise':
        return sum(smooth_noise(rng, size, int(c)) / 3 for c in (4, 12, 32))
    if name == 'stripes':
        return (np.sin(2 * np.pi * frequency * u + phase) > rng.uniform(-0.6, 0.6)) * np.float32(1)
    if name == 'checks':
        return (np.floor(frequency * u + 8) + np.floor(frequency * v + 8)) % 2
    if name == 'dots':
        radius = ((frequency * u) % 1 - 0.5) ** 2 + ((frequency * v) % 1 - 0.5) ** 2
        return (radius < rng.uniform(0.04, 0.14)) * np.float32(1)
    if name == 'gradient':
        return np.clip(u * rng.uniform(0.5, 1.0) + rng.uniform(0, 0.5), 0, 1)
    if name == 'voronoi':
        points = rng.random((int(rng.integers(8, 28)), 2), dtype=np.float32)
        distance = (x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2
        return rng.random(len(points), dtype=np.float32)[distance.argmin(-1)]
    warp = smooth_noise(rng, size, 5)
    if name == 'waves':
        return 0.5 + 0.5 * np.sin(2 * np.pi * (frequency * u + rng.uniform(0.3, 1) * warp) + phase)
    if name == 'marble':
        return np.abs(np.sin(2 * np.pi * (rng.uniform(1, 3) * u + rng.uniform(2, 4) * warp)))
    raise ValueError(f'unknown texture {name!r}, expected one of {TEXTURES}')


def coloured(
    rng: np.random.Generator, values: np.ndarray, contrast: float = 1.0, low: float = 0,
    high: float = 255,
) -> np.ndarray:
    """Colours for grey levels: a mixture of two random colours.

    Args:
        rng: Source of randomness.
        values: (H, W) float32 in [0, 1].
        contrast: 1 keeps both colours, 0 makes them equal.
        low: Lowest level of a colour channel.
        high: Highest level of a colour channel.

    Returns:
        (H, W, 3) float32 in [low, high].
    """
    first = rng.uniform(low, high, 3).astype(np.float32)
    second = first + contrast * (rng.uniform(low, high, 3).astype(np.float32) - first)
    return first + values[..., None].astype(np.float32) * (second - first)


@functools.lru_cache(maxsize=1)
def _fractal_systems():
    """Affine maps of every fractal class: list of (weights (k,), matrices (k, 2, 3)).

    Kept are random systems whose attractor fills between 12 and 60 % of its box.
    """
    rng = np.random.default_rng(2101)
    systems = []
    while len(systems) < NUM_FRACTALS:
        k = int(rng.integers(2, 5))
        maps = rng.uniform(-1, 1, (k, 2, 3))
        for m in maps:  # contraction: largest singular value below 0.85
            m[:, :2] *= rng.uniform(0.45, 0.85) / np.linalg.norm(m[:, :2], 2)
        weights = np.abs(np.linalg.det(maps[:, :, :2])) + 0.02
        system = (weights / weights.sum(), maps)
        fill = (_fractal_mask(rng, system, 32) > 0).mean()
        if 0.12 < fill < 0.6:
            systems.append(system)
    return systems


def _fractal_mask(rng, system, size):
    """Chaos game with 400 points at once, 24 steps of which 8 are thrown away."""
    weights, maps = system
    points = np.zeros((400, 2))
    seen = []
    for step in range(24):
        chosen = maps[rng.choice(len(weights), 400, p=weights)]
        points = np.einsum('nij,nj->ni', chosen[:, :, :2], points) + chosen[:, :, 2]
        if step >= 8:
            seen.append(points)
    points = np.concatenate(seen)
    low, high = np.percentile(points, 1, axis=0), np.percentile(points, 99, axis=0)
    points = (points - (low + high) / 2) / max((high - low).max(), 1e-6)  # within about +-0.5
    mask = np.zeros((size, size), np.uint8)
    ij = np.round((points * 0.96 + 0.5) * (size - 1)).astype(int)
    ij = ij[((ij >= 0) & (ij < size)).all(1)]
    mask[ij[:, 1], ij[:, 0]] = 1
    if size > 32:
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    return mask


@functools.lru_cache(maxsize=1)
def _stroke_series():
    """Coefficients of every stroke class: (NUM_STROKES, 1 + 2 * 3) float64.

    The direction of a stroke turns by `c0 * s + sum_k a_k sin(2 pi k s) + b_k (1 - cos(2 pi k s))`
    along its arc length s in [0, 1], in radians.
    """
    rng = np.random.default_rng(309)
    series = rng.normal(0, 1, (NUM_STROKES, 7)) * np.array([3.0, 1.6, 1.6, 1.1, 1.1, 0.7, 0.7])
    return series


def _curve_mask(points, size, thickness, closed):
    """Draws a curve, (n, 2) in any unit, centred and scaled to fill the square."""
    low, high = points.min(0), points.max(0)
    scale = (size - thickness - 2) / max((high - low).max(), 1e-6)
    points = (points - (low + high) / 2) * scale + size / 2
    mask = np.zeros((size, size), np.uint8)
    cv2.polylines(mask, [np.round(points * 16).astype(np.int32)], closed, 1, int(thickness),
                  shift=4)
    return mask


def object_mask(rng: np.random.Generator, label: int, size: int) -> np.ndarray:
    """One upright object of a class.

    Args:
        rng: Source of randomness (variation inside the class).
        label: Label id, `len(TEXTURES)` or more.
        size: Height and width of the box, pixels.

    Returns:
        (size, size) uint8, 1 where the object is.
    """
    kind, name = CLASSES[label].split('-', 1)
    thickness = max(2, round(size * rng.uniform(0.08, 0.16)))
    if kind == 'fractal':
        weights, maps = _fractal_systems()[int(name)]
        return _fractal_mask(rng, (weights, maps * rng.uniform(0.9, 1.1, maps.shape)), size)
    if kind == 'radial':
        n, rings = (int(part) for part in name.split('x'))
        angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
        radius = rng.uniform(0.75, 1.0, n)
        mask = np.zeros((size, size), np.uint8)
        for ring in range(rings):
            r = radius * (1 - ring / rings) * (size / 2 - 2)
            points = np.stack([np.cos(angle), np.sin(angle)], 1) * r[:, None] + size / 2
            points = [np.round(points * 16).astype(np.int32)]
            if rings == 1:
                cv2.fillPoly(mask, points, 1, shift=4)
            else:
                cv2.polylines(mask, points, True, 1, max(1, thickness // 2), shift=4)
        return mask
    if kind == 'lissajous':
        a, b = (int(part) for part in name.split(':'))
        t = np.linspace(0, 2 * np.pi, 160)
        points = np.stack([np.sin(a * t + rng.uniform(0.6, 1.2)), np.sin(b * t)], 1)
        return _curve_mask(points, size, max(1, thickness // 2), True)
    if kind == 'stroke':
        c = _stroke_series()[int(name)] + rng.normal(0, 0.18, 7)
        s = np.linspace(0, 1, 64)
        turn = c[0] * s
        for k in (1, 2, 3):
            turn = turn + c[2 * k - 1] * np.sin(2 * np.pi * k * s)
            turn = turn + c[2 * k] * (1 - np.cos(2 * np.pi * k * s))
        points = np.cumsum(np.stack([np.cos(turn), np.sin(turn)], 1), 0)
        return _curve_mask(points * rng.uniform(0.8, 1.2, 2), size, thickness, False)
    m, n1, n2, n3 = SUPERFORMULA[int(name)]
    n1, n2, n3 = np.array([n1, n2, n3]) * rng.uniform(0.85, 1.15, 3)
    t = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    r = (np.abs(np.cos(m * t / 4)) ** n2 + np.abs(np.sin(m * t / 4)) ** n3) ** (-1 / n1)
    r = r / r.max() * (size / 2 - 2)
    points = np.stack([np.cos(t) * r, np.sin(t) * r], 1) + size / 2
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 1, shift=4)
    return mask


def place(
    rng: np.random.Generator, image: np.ndarray, labels: np.ndarray, mask: np.ndarray, label: int,
    max_angle: float, contrast: float, low: float = 0, high: float = 255,
) -> np.ndarray:
    """Turns, squeezes and pastes one object into an image, in place.

    Args:
        rng: Source of randomness.
        image: (H, W, 3) float32 in [0, 255], changed.
        labels: (H, W) uint8, changed.
        mask: (s, s) float32 or uint8 in [0, 1], the object.
        label: Label id of its pixels.
        max_angle: Largest turn to either side, degrees.
        contrast: Smallest colour distance to what is below, in grey levels.
        low: Lowest level of a colour channel of the object.
        high: Highest level of a colour channel of the object.

    Returns:
        (H, W) bool, where the object was painted.
    """
    height, width = labels.shape
    s = mask.shape[0]
    matrix = cv2.getRotationMatrix2D((s / 2, s / 2), rng.uniform(-max_angle, max_angle), 1.0)
    matrix[:, :2] *= rng.uniform(0.85, 1.15, (2, 1))
    centre = rng.uniform(0.12, 0.88, 2) * (width, height)
    matrix[:, 2] += centre - matrix[:, :2] @ (s / 2, s / 2) - matrix[:, 2]
    alpha = cv2.warpAffine(mask.astype(np.float32), matrix, (width, height),
                           flags=cv2.INTER_LINEAR)
    where = alpha > 0.5
    if not where.any():
        return where
    below = image[where].mean(0)
    for _ in range(20):
        values = texture_values(rng, TEXTURES[rng.integers(len(TEXTURES))], width) \
            if rng.random() < 0.25 else smooth_noise(rng, width, 6)
        paint = coloured(rng, values, contrast=rng.uniform(0, 0.35), low=low, high=high)
        if np.abs(paint[where].mean(0) - below).max() > contrast:
            break
    image += np.minimum(alpha * 1.2, 1)[..., None] * (paint - image)
    labels[where] = label
    return where


def finish(rng: np.random.Generator, image: np.ndarray, noise: float) -> np.ndarray:
    """Light and dark sides, blur now and then, noise.

    Args:
        rng: Source of randomness.
        image: (H, W, 3) float32.
        noise: Largest standard deviation of the noise, grey levels.

    Returns:
        (H, W, 3) uint8.
    """
    image = image * (0.7 + 0.6 * smooth_noise(rng, image.shape[0], 3))[..., None]
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (3, 3), 0)
    image = image + rng.normal(0, rng.uniform(0, noise), image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def formula_sample(seed: int, index: int, size: int = 96) -> tuple:
    """One image with its labels, a function of its arguments only.

    Args:
        seed: Seed of the data set.
        index: Number of the image.
        size: Height and width, pixels.

    Returns:
        image (size, size, 3) uint8 and label ids (size, size) uint8.
    """
    rng = np.random.default_rng([FORMULA_VERSION, seed, index])
    # Most images are easy: light objects on a dark and calm background. Where light and dark are a
    # coin's toss a small transformer sees no gradient for a long time.
    easy = rng.random() < 0.7
    texture = int(rng.integers(len(TEXTURES)))
    values = texture_values(rng, TEXTURES[texture], size)
    if easy:
        image = coloured(rng, values, rng.uniform(0.2, 0.8), high=90)
    else:
        image = coloured(rng, values, rng.uniform(0.15, 0.8))
    labels = np.full((size, size), texture, np.uint8)
    for _ in range(rng.integers(2, 6)):
        label = int(rng.integers(len(TEXTURES), len(CLASSES)))
        mask = object_mask(rng, label, int(size * rng.uniform(0.32, 0.7)))
        place(rng, image, labels, mask, label, max_angle=25, contrast=50, low=150 if easy else 0)
    return finish(rng, image, noise=5 if easy else 12), labels
