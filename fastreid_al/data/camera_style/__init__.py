"""Training images in the styles of other cameras, a batch at a time, on the batch's device.

Two styles are computed from statistics of each camera's images, which are taken once: `ColourStyle`
and `FourierStyle`. `FileStyle` reads copies that a generative network made of each image for each
other camera (CamStyle: Zhong et al., CVPR 2018).
"""

from .choose import camera_style, reason_without_styles
from .colour import ColourStyle
from .files import FileStyle, match_copies
from .fourier import FourierStyle
from .style import CameraStyle, Styles, known_cameras

__all__ = [
    "CameraStyle",
    "ColourStyle",
    "FileStyle",
    "FourierStyle",
    "Styles",
    "camera_style",
    "known_cameras",
    "match_copies",
    "reason_without_styles",
]
