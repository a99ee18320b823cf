"""Transposed convolutions of real models, as data: what reports and benchmarks run."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax.typing import DTypeLike


class LayerCall(NamedTuple):
    """The arguments of one `conv_transpose`: `conv_transpose(lhs, rhs, **kwargs)`."""

    lhs: jax.ShapeDtypeStruct
    rhs: jax.ShapeDtypeStruct
    kwargs: dict[str, Any]


class Layer(NamedTuple):
    """One layer of a model, channels last; `call` gives it in other layouts and sizes."""

    name: str
    lhs: tuple[int, ...]
    out: int  # channels
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    source: str
    # Arguments of `conv_transpose` beyond the above.
    more: Mapping[str, Any] = MappingProxyType({})

    def call(
        self, dtype: DTypeLike = "float32", *, channels_first: bool = False, batch: int = 1
    ) -> LayerCall:
        """Return the layer's call, for `batch` times as many examples.

        With `channels_first`, lhs is `NCHW` and rhs `IOHW`: spatial axes are last.
        """
        n, *spatial, c = self.lhs
        groups = self.more.get("feature_group_count", 1)
        reversed_ = self.more.get("transpose_kernel", False)
        channels = (self.out // groups, c) if reversed_ else (c // groups, self.out)
        kwargs = {"strides": self.strides, "padding": self.padding, **self.more}
        lhs: tuple[int, ...] = (n * batch, *spatial, c)
        rhs: tuple[int, ...] = (*self.kernel, *channels)
        if channels_first:
            lhs = (n * batch, c, *spatial)
            rhs = (*channels, *self.kernel)
            axes = "DHW"[-len(spatial) :]
            kwargs["dimension_numbers"] = (f"NC{axes}", f"IO{axes}", f"NC{axes}")
        return LayerCall(jax.ShapeDtypeStruct(lhs, dtype), jax.ShapeDtypeStruct(rhs, dtype), kwargs)


_DCGAN = "DCGAN generator, https://arxiv.org/abs/1511.06434"
_HIFIGAN = "HiFi-GAN V1 generator, https://arxiv.org/abs/2010.05646"

# fmt: off
LAYERS = (
    Layer("dcgan_64", (8, 16, 16, 256), 128, (4, 4), (2, 2), "SAME", _DCGAN),
    Layer("dcgan_4", (8, 4, 4, 512), 256, (4, 4), (2, 2), "SAME", _DCGAN),
    Layer("dcgan_rgb", (8, 32, 32, 64), 3, (4, 4), (2, 2), "SAME", _DCGAN),
    Layer("dcgan_k5", (8, 8, 8, 512), 256, (5, 5), (2, 2), "SAME", _DCGAN),
    Layer("unet_up", (1, 64, 64, 128), 64, (2, 2), (2, 2), "VALID",
          "U-Net up-convolution, https://arxiv.org/abs/1505.04597"),
    Layer("resnet_decoder", (4, 32, 32, 128), 64, (3, 3), (2, 2), "SAME",
          "CycleGAN's ResNet generator, https://arxiv.org/abs/1703.10593"),
    Layer("fcn8s", (1, 64, 64, 21), 21, (16, 16), (8, 8), "SAME",
          "FCN-8s upsampling of 21 classes, https://arxiv.org/abs/1411.4038"),
    Layer("fsrcnn_x4", (1, 128, 128, 56), 1, (9, 9), (4, 4), "SAME",
          "FSRCNN deconvolution, https://arxiv.org/abs/1608.00367"),
    Layer("sam_decoder", (1, 64, 64, 256), 64, (2, 2), (2, 2), "VALID",
          "Segment Anything's mask decoder, https://arxiv.org/abs/2304.02643"),
    Layer("stride1", (4, 64, 64, 64), 64, (3, 3), (1, 1), "SAME",
          "deconvolution network, https://arxiv.org/abs/1505.04366"),
    Layer("atrous", (2, 32, 32, 64), 64, (3, 3), (2, 2), "SAME",
          "transpose of an atrous convolution, https://arxiv.org/abs/1606.00915",
          {"rhs_dilation": (2, 2)}),
    Layer("bilinear_depthwise", (1, 64, 64, 64), 64, (4, 4), (2, 2), "SAME",
          "deep layer aggregation's upsampling, https://arxiv.org/abs/1707.06484",
          {"feature_group_count": 64}),
    Layer("bilinear_fcn", (1, 64, 64, 21), 21, (16, 16), (8, 8), "SAME",
          "FCN-8s upsampling, class by class, https://arxiv.org/abs/1605.06211",
          {"feature_group_count": 21}),
    Layer("hifigan_1", (1, 64, 512), 256, (16,), (8,), "SAME", _HIFIGAN),
    Layer("hifigan_2", (1, 512, 256), 128, (16,), (8,), "SAME", _HIFIGAN),
    Layer("hifigan_4", (1, 4096, 128), 64, (4,), (2,), "SAME", _HIFIGAN),
    Layer("encodec", (1, 1000, 128), 64, (10,), (5,), "VALID",
          "EnCodec decoder, https://arxiv.org/abs/2210.13438"),
    Layer("istft", (1, 200, 514), 1, (512,), (128,), "VALID",
          "inverse short-time Fourier transform, https://github.com/pseeth/torch-stft"),
    Layer("unet3d_up", (1, 16, 16, 16, 64), 32, (2, 2, 2), (2, 2, 2), "VALID",
          "3D U-Net up-convolution, https://arxiv.org/abs/1606.06650"),
    Layer("vnet", (1, 12, 12, 12, 64), 32, (3, 3, 3), (2, 2, 2), "SAME",
          "V-Net up-convolution, https://arxiv.org/abs/1606.04797"),
    Layer("gan3d", (1, 8, 8, 8, 128), 64, (4, 4, 4), (2, 2, 2), "SAME",
          "3D-GAN generator, https://arxiv.org/abs/1610.07584"),
    Layer("jax_31662", (1, 32, 32, 16, 64), 1, (3, 3, 3), (2, 2, 2), ((1, 1),) * 3,
          "a user's decoder, https://github.com/jax-ml/jax/issues/31662",
          {"use_consistent_padding": True, "output_padding": (1, 1, 1)}),
)
# fmt: on

BY_NAME = {layer.name: layer for layer in LAYERS}
