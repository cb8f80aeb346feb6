"""Network definitions. `build` turns a `NetConfig` into a module."""

from rescale_train.models.auxiliary import AutoEncoder
from rescale_train.models.coupling import DenseBlock, InvBlock
from rescale_train.models.irn import Downscaled, RescalingNet, build, spared

__all__ = ["AutoEncoder", "DenseBlock", "Downscaled", "InvBlock", "RescalingNet", "build", "spared"]
