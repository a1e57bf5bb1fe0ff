"""Render one image of the synthetic set: a function of (seed, split, identity, camera, index).

An identity is a `Traits` record (hair, skin, build, clothes, bag, hat); one identity in seven is a
copy of another with one trait changed. A camera has a scene, a colour response, a viewpoint and a
side of people that it usually sees. The images of one identity under one camera form a tracklet:
they share the heading and the place, and differ in walking phase, box, light, occlusion, blur,
noise and JPEG quality.

An image is rendered in three steps. First, the person, a posed skeleton in three dimensions, is
projected and filled back to front with tapered tubes on a canvas of twice the size, which holds one
byte for each pixel: the material and its shade (`figure`, `clothes`, `body`, `canvas`). Second, the
canvas becomes colours with coverage, averaged 2 x 2 over a crop of the camera's scene (`scene`).
Third, light, colour response, blur and noise are applied (`exposure`, `camera`).

The pixels are the same on every machine: random numbers come from SplitMix64, arrays see only
integers and exactly rounded operations (+ - * / and comparisons), and sines and gamma curves are
rounded before use.
"""

from __future__ import annotations

import math

import numpy as np

from ..config import SyntheticConfig
from .body import Pose
from .camera import Camera, camera_of, heading_of
from .canvas import OVERSAMPLING, Canvas
from .exact import Array, Stream, cosine
from .exposure import add_noise, blur, expose
from .figure import render_person
from .occlusion import render_occlusion
from .scene import crop_scene
from .traits import Split, traits_of

#: Raised whenever the same configuration would give other pixels than before; part of the name of
#: the cached folder.
RENDER_VERSION = 1

_OCCLUSION_PROBABILITY = 0.18


def render_image(
    config: SyntheticConfig, split: Split, identity: int, camera: int, index: int
) -> Array:
    """Render one image, as it is before JPEG.

    Args:
        config: The set; only its seed, height and cast matter here.
        split: "train", or "test" for query and gallery.
        identity: Number of the person, from 0 in each split.
        camera: Number of the camera, from 1.
        index: Number of the image among those of the identity.

    Returns:
        RGB, (config.height, width, 3) uint8, the width 40 to 52 % of the height. The same arguments
        give the same pixels in any order, in any process and on any machine.
    """
    track = Stream(config.seed, split, identity, camera, "track")
    stream = Stream(config.seed, split, identity, camera, index, "image")
    view = camera_of(config.seed, camera, config.height, config.cast)
    height = config.height
    width = int(height * stream.between(0.4, 0.52))
    canvas = Canvas(height, width)
    pose = _pose(view, height, width, track, stream)
    render_person(canvas, traits_of(config, split, identity), pose)
    if stream.chance(_OCCLUSION_PROBABILITY):
        render_occlusion(canvas, config.seed, stream, pose)
    canvas.fade(view.grey)
    image = canvas.over(crop_scene(view.scene, height, width, track, stream))
    return _photograph(image, view, stream)


def jpeg_quality(
    config: SyntheticConfig, split: Split, identity: int, camera: int, index: int
) -> int:
    """Return the JPEG quality, 40 to 95, with which `write_synthetic` stores an image.

    Args:
        config: The set; only its seed matters here.
        split: "train", or "test" for query and gallery.
        identity: Number of the person, from 0 in each split.
        camera: Number of the camera, from 1.
        index: Number of the image among those of the identity.
    """
    return 40 + Stream(config.seed, split, identity, camera, index, "jpeg").below(56)


def _pose(view: Camera, height: int, width: int, track: Stream, stream: Stream) -> Pose:
    """Choose where the person stands in the image, and how."""
    # The order of the statements is the order of the random numbers.
    head = stream.between(-0.03, 0.1)
    foot = stream.between(0.91, 1.03)
    return Pose(
        x=width * (1 + stream.between(-0.1, 0.1)),
        ground=OVERSAMPLING * height * foot,
        scale=OVERSAMPLING * height * (foot - head) / (1.04 * cosine(view.tilt)),
        yaw=heading_of(view, track) + stream.between(-0.4, 0.4),
        phase=stream.between(0, 2 * math.pi),
        stride=stream.pick((0.08, 0.3, 0.4, 0.5)),
        lean=view.lean + stream.between(-0.02, 0.02),
        tilt=view.tilt,
        swell=view.swell,
        light=view.light,
    )


def _photograph(image: Array, view: Camera, stream: Stream) -> Array:
    """Apply light, the camera's colour response, blur and noise: (H, W, 3) uint8 to the same."""
    exposed = expose(image, view.light, stream)
    channels = [view.curve[channel][exposed[..., channel]] for channel in range(3)]
    coloured = np.stack(channels, axis=-1)
    times = stream.pick((0, 0, 0, 1, 2)) * max(1, len(image) // 128)
    blurred = blur(coloured, times, stream.pick(((0, 1), (0, 1), (1,))))
    return add_noise(blurred, stream.pick((6, 14, 22, 34)), stream)
