"""Rendered rooms with their exact depth and normals.

``python tools/dev/make_rooms.py data/rooms``

Boxes and balls of random sizes and colours in a room with a chequered floor, seen by a pinhole
camera of 60 degrees that looks about; one lamp, no shadows. Images of 224x168. ``images/SPLIT``
holds PNGs, ``depth/SPLIT`` millimetres along the optical axis (16 bits), ``normals/SPLIT`` colours
of 16 bits: x to the right, y up, z to the camera. It is nobody's photograph: what a model learns
here says nothing of real rooms.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from vpt_dense.datasets import map_files
from vpt_dense.errors import ArgumentParser, UserError, count, main

HEIGHT, WIDTH = 168, 224
#: Images of each split.
SPLITS = {'training': 64, 'validation': 16, 'test': 32}
_FAR = 1e9


class Hit(NamedTuple):
    """Where rays end.

    Attributes:
        distance: (N,) along the ray, whose length along the optical axis is 1.
        normals: (N, 3), towards the camera.
        colours: (N, 3), 0 to 1.
    """

    distance: np.ndarray
    normals: np.ndarray
    colours: np.ndarray


def box(origin: np.ndarray, rays: np.ndarray, centre, half, angle: float, colour, inside=False):
    """Rays (N, 3) from a point at a box that is turned about the y axis; or from inside of it."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    start, ways = turn.T @ (origin - centre), rays @ turn  # in the box's own frame
    ways = np.where(np.abs(ways) < 1e-12, 1e-12, ways)
    ends = np.stack([(sign * np.asarray(half) - start) / ways for sign in (-1, 1)])  # (2, N, 3)
    near, far = ends.min(0), ends.max(0)
    first, last = near.max(1), far.min(1)
    axis = far.argmin(1) if inside else near.argmax(1)
    distance = last if inside else np.where((first < last) & (first > 0), first, _FAR)
    normals = np.zeros_like(rays)
    normals[np.arange(len(rays)), axis] = -np.sign(ways[np.arange(len(rays)), axis])
    colours = np.broadcast_to(colour, rays.shape).copy()
    if inside:  # tiles on the floor, stripes on the walls
        points = start + ways * distance[:, None]
        floor = (axis == 1) & (points[:, 1] < 0)
        tiles = (np.floor(points[:, 0] * 2) + np.floor(points[:, 2] * 2)) % 2
        colours[floor] *= 0.6 + 0.4 * tiles[floor, None]
        walls = axis != 1
        stripes = np.floor((points[:, 0] + points[:, 2]) * 3) % 2
        colours[walls] *= 0.85 + 0.15 * stripes[walls, None]
    return Hit(distance, normals @ turn.T, colours)


def ball(origin: np.ndarray, rays: np.ndarray, centre, radius: float, colour) -> Hit:
    """Rays at a ball."""
    away = origin - centre
    a, b = (rays**2).sum(1), rays @ away
    root = b**2 - a * (away @ away - radius**2)
    distance = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, _FAR)
    distance = np.where(distance > 0, distance, _FAR)
    normals = (away + rays * np.where(distance < _FAR, distance, 0)[:, None]) / radius
    return Hit(distance, normals, np.broadcast_to(colour, rays.shape))


def render(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A room.

    Returns:
        RGB (H, W, 3) uint8; depth (H, W) in metres; normals (H, W, 3).
    """
    wide, high, deep = rng.uniform(3, 6), rng.uniform(2.4, 3.2), rng.uniform(4, 8)
    eye = np.array([rng.uniform(-0.3, 0.3) * wide, rng.uniform(1.2, 1.8), 0.3])
    yaw, pitch = rng.uniform(-0.4, 0.4), rng.uniform(-0.35, 0.05)
    focal = WIDTH / 2 / np.tan(np.radians(30))
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5 - WIDTH / 2, HEIGHT / 2 - np.arange(HEIGHT) - 0.5)
    rays = np.stack([x / focal, y / focal, np.ones_like(x)], axis=2).reshape(-1, 3)
    tilt = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)],
                     [0, -np.sin(pitch), np.cos(pitch)]])
    look = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0],
                     [-np.sin(yaw), 0, np.cos(yaw)]]) @ tilt  # camera to room
    rays = rays @ look.T
    half = np.array([wide, high, deep]) / 2
    hits = [box(eye, rays, [0, half[1], half[2]], half, 0, rng.uniform(0.5, 1, 3), inside=True)]
    for _ in range(rng.integers(3, 8)):
        size = rng.uniform(0.15, 0.6)
        place = np.array([rng.uniform(-0.4, 0.4) * wide, 0, rng.uniform(0.2, 0.95) * deep])
        colour = rng.uniform(0.1, 1, 3)
        if rng.random() < 0.6:
            sides = size * rng.uniform(0.5, 1.5, 3)
            hits.append(box(eye, rays, place + [0, sides[1], 0], sides,
                            rng.uniform(0, np.pi), colour))
        else:
            hits.append(ball(eye, rays, place + [0, size, 0], size, colour))
    nearest = np.stack([hit.distance for hit in hits]).argmin(0)
    pick = np.arange(len(rays))
    depth, normals, colours = (
        np.stack([getattr(hit, key) for hit in hits])[nearest, pick] for key in Hit._fields)
    lamp = np.array([0, high - 0.1, deep / 2]) - (eye + rays * depth[:, None])
    away = np.linalg.norm(lamp, axis=1)
    light = 0.35 + 0.65 * np.maximum((normals * lamp).sum(1), 0) / away / (1 + 0.05 * away**2)
    image = 255 * (colours * light[:, None]) + rng.normal(0, 4, colours.shape)
    seen = (normals @ look) * [1, 1, -1]  # in the camera's frame, z towards it
    shape = HEIGHT, WIDTH
    return (image.clip(0, 255).astype(np.uint8).reshape(*shape, 3), depth.reshape(shape),
            seen.reshape(*shape, 3))


def run() -> None:
    """Command line."""
    from PIL import Image

    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path, help='folder to make')
    parser.add_argument('--number', type=count, help='images of each split (default: 64, 16, 32)')
    args = parser.parse_args()
    if args.out.exists():
        raise UserError(f'{args.out} is there already')
    for seed, (split, number) in enumerate(SPLITS.items()):
        rng = np.random.default_rng(seed)
        (args.out / 'images' / split).mkdir(parents=True)
        for i in range(args.number or number):
            image, depth, normals = render(rng)
            Image.fromarray(image).save(args.out / 'images' / split / f'{i:03}.png')
            map_files.write_depth(args.out / 'depth' / split / f'{i:03}', depth, 1000, 10)
            map_files.write_normals(args.out / 'normals' / split / f'{i:03}', normals)
    print(', '.join(f'{args.number or n} {name}' for name, n in SPLITS.items()),
          'rooms in', args.out)


if __name__ == '__main__':
    main(run)
