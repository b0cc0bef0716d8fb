"""The two backbones and the projection heads (Section 3, "Notations and Architecture").

    B    samples              T    frames               H, W    pixels
    C    channels             P    mel filters          Q       audio frames
    d    size of an embedding, 512

    video (B, 3, T, H, W) --> R(2+1)D-18 --> (B, 512, T/8, H/16, W/16) --> head --> z_v (B, d)
    audio (B, 1, P, Q)    --> ResNet-18  --> (B, 512, P/32, Q/32)      --> head --> z_a (B, d)

These sizes are rounded up. The 512 channels of the maps are 8 times the width, 64; d is 512 at
any width. Fine-tuning does not use the heads. MC3-18, another video network, is not the paper's:
it never halves time, so its map is (B, 512, T, H/16, W/16).
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn


class SpatialConv(nn.Conv3d):
    """A 1 x size x size convolution, of each frame by itself.

    It is computed in 2-D, where its backward pass takes half the time on a CPU.
    """

    def __init__(self, cin, cout, size, stride=1):
        super().__init__(
            cin,
            cout,
            kernel_size=(1, size, size),
            stride=(1, stride, stride),
            padding=(0, size // 2, size // 2),
            bias=False,
        )

    def forward(self, x):
        frames = x.transpose(1, 2).flatten(0, 1)  # (B * T, C, H, W)
        frames = F.conv2d(frames, self.weight[:, :, 0], None, self.stride[1:], self.padding[1:])
        return frames.unflatten(0, (len(x), -1)).transpose(1, 2)  # (B, C', T, H', W')


class TemporalConv(nn.Conv3d):
    """A 3 x 1 x 1 convolution, over time alone."""

    def __init__(self, cin, cout, stride=1):
        super().__init__(
            cin,
            cout,
            kernel_size=(3, 1, 1),
            stride=(stride, 1, 1),
            padding=(1, 0, 0),
            bias=False,
        )


class BatchNorm3d(nn.BatchNorm3d):
    """BatchNorm of (B, C, T, H, W), with the same result whether or not it is folded.

    Folded, it takes time and height as one axis. PyTorch's kernel for channels-last maps of four
    axes is vectorised on a GPU, and the one for five is not; on a CPU folding brings nothing.
    """

    fold = None  # True or False; None: on a GPU

    def forward(self, x):
        fold = x.is_cuda if self.fold is None else self.fold
        if not fold:
            return super().forward(x)
        return super().forward(x.flatten(2, 3)).unflatten(2, x.shape[2:4])

    def _check_input_dim(self, x):
        assert x.dim() in (4, 5)  # folded or not


def midplanes_of(cin, cout):
    """The channels inside a Conv2Plus1D, so that it has about as many weights as a 3-D convolution.

    Tran et al., 2018: 27 * cin * cout = 9 * cin * mid + 3 * mid * cout.
    """
    return 27 * cin * cout // (9 * cin + 3 * cout)


class Conv2Plus1D(nn.Sequential):
    """A 3x3x3 convolution factored into space (1x3x3), then time (3x1x1): "(2+1)D".

    midplanes  the channels in between, see `midplanes_of`
    """

    def __init__(self, cin, cout, midplanes, stride=1):
        super().__init__(
            SpatialConv(cin, midplanes, 3, stride),
            BatchNorm3d(midplanes),
            nn.ReLU(inplace=True),
            TemporalConv(midplanes, cout, stride),
        )


class VideoBlock(nn.Module):
    """Residual block of two convolutions of a video, cin -> cout and cout -> cout channels.

    strides  of the first one, and so of the shortcut: (time, height, width)
    """

    def __init__(self, cin, cout, first, second, strides):
        super().__init__()
        self.conv1 = nn.Sequential(
            first,
            BatchNorm3d(cout),
            nn.ReLU(inplace=True),
        )
        self.conv2 = nn.Sequential(
            second,
            BatchNorm3d(cout),
        )
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if strides != (1, 1, 1) or cin != cout:
            self.downsample = nn.Sequential(
                nn.Conv3d(cin, cout, 1, strides, bias=False),
                BatchNorm3d(cout),
            )

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv2(self.conv1(x)) + shortcut)


class Block2Plus1D(VideoBlock):
    """Two (2+1)D convolutions; a stride halves time as well as space."""

    def __init__(self, cin, cout, stride=1):
        # As in torchvision, one number serves both convolutions, though the second has cout inputs.
        midplanes = midplanes_of(cin, cout)
        first = Conv2Plus1D(cin, cout, midplanes, stride)
        second = Conv2Plus1D(cout, cout, midplanes)
        super().__init__(cin, cout, first, second, (stride, stride, stride))


class Block3D(VideoBlock):
    """Two full 3x3x3 convolutions; a stride halves time as well as space."""

    def __init__(self, cin, cout, stride=1):
        first = nn.Conv3d(cin, cout, 3, stride, 1, bias=False)
        second = nn.Conv3d(cout, cout, 3, 1, 1, bias=False)
        super().__init__(cin, cout, first, second, (stride, stride, stride))


class Block2D(VideoBlock):
    """Two 1x3x3 convolutions, of each frame by itself; a stride halves space alone."""

    def __init__(self, cin, cout, stride=1):
        first = SpatialConv(cin, cout, 3, stride)
        second = SpatialConv(cout, cout, 3)
        super().__init__(cin, cout, first, second, (1, stride, stride))


class AudioBlock(nn.Module):
    """ResNet's basic block: two 3x3 convolutions and a shortcut."""

    def __init__(self, cin, cout, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.downsample = None
        if stride != 1 or cin != cout:
            self.downsample = nn.Sequential(
                nn.Conv2d(cin, cout, 1, stride, bias=False),
                nn.BatchNorm2d(cout),
            )

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class Backbone(nn.Module):
    """What the networks share: after a stem, four stages of two blocks.

    The channels double where the size halves. `features(x)` is the map that a projection head
    takes. `net(x)` is that map averaged, (B, 8 * width), or, if num_classes > 0, the
    logits (B, num_classes).
    """

    def add_stages(self, blocks, pool, width, num_classes):
        """blocks  what the blocks of each of the four stages are"""
        # With fewer than 8 channels, oneDNN's 1x1 convolution corrupts memory on AVX2.
        if width < 8 or width % 8:
            raise ValueError(f"width = {width} must be a multiple of 8")
        first, second, third, fourth = blocks
        self.layer1 = nn.Sequential(
            first(width, width),
            first(width, width),
        )
        self.layer2 = nn.Sequential(
            second(width, 2 * width, stride=2),
            second(2 * width, 2 * width),
        )
        self.layer3 = nn.Sequential(
            third(2 * width, 4 * width, stride=2),
            third(4 * width, 4 * width),
        )
        self.layer4 = nn.Sequential(
            fourth(4 * width, 8 * width, stride=2),
            fourth(8 * width, 8 * width),
        )
        self.avgpool = pool
        self.fc = nn.Linear(8 * width, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x):
        x = self.stem(x)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        # (B, 8 * width, T/8, H/16, W/16), in MC3-18 with T as it was, or (B, 8 * width, P/32, Q/32)
        return self.layer4(x)

    def forward(self, x):
        return self.fc(self.avgpool(self.features(x)).flatten(1))


class R2Plus1D18(Backbone):
    """The video network f: (B, 3, T, H, W) -> (B, 8 * width), or (B, num_classes) logits.

    At width 64: names, shapes and outputs of `torchvision.models.video.r2plus1d_18`.
    """

    def __init__(self, width=64, num_classes=0):
        super().__init__()
        midplanes = 45 * width // 64  # as torchvision's 45 of 64; `midplanes_of` would give 23
        self.stem = nn.Sequential(
            SpatialConv(3, midplanes, 7, stride=2),
            BatchNorm3d(midplanes),
            nn.ReLU(inplace=True),
            TemporalConv(midplanes, width),
            BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )  # (B, width, T, H/2, W/2)
        self.add_stages([Block2Plus1D] * 4, nn.AdaptiveAvgPool3d(1), width, num_classes)
        self.to(memory_format=torch.channels_last_3d)  # 1.2 to 1.3 times the speed on a CPU


class MixedConv18(Backbone):
    """A video network of mixed convolutions: (B, 3, T, H, W) -> (B, 8 * width), or the logits.

    Only the stem and the first stage look across frames, by full 3-D convolutions. All others
    take each frame by itself, and time is never halved (Tran et al., 2018). At width 64: names,
    shapes and outputs of `torchvision.models.video.mc3_18`.
    """

    def __init__(self, width=64, num_classes=0):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False),
            BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )  # (B, width, T, H/2, W/2)
        blocks = [Block3D, Block2D, Block2D, Block2D]
        self.add_stages(blocks, nn.AdaptiveAvgPool3d(1), width, num_classes)
        self.to(memory_format=torch.channels_last_3d)


class AudioResNet18(Backbone):
    """The audio network g: log-mel (B, 1, P, Q) -> (B, 8 * width), or (B, num_classes) logits.

    At width 64: names, shapes and outputs of `torchvision.models.resnet18`, but for the one
    input channel.
    """

    def __init__(self, width=64, num_classes=0):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.add_stages([AudioBlock] * 4, nn.AdaptiveAvgPool2d(1), width, num_classes)
        self.to(memory_format=torch.channels_last)

    def stem(self, x):
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))  # (B, width, P/4, Q/4)


# The names by which a checkpoint records its backbones.
r2plus1d_18 = R2Plus1D18
mc3_18 = MixedConv18
audio_resnet18 = AudioResNet18
NETWORKS = {
    "r2plus1d_18": r2plus1d_18,
    "mc3_18": mc3_18,
    "audio_resnet18": audio_resnet18,
}


class ProjectionHead(nn.Module):
    """h_f or h_g: two convolutions of kernel 1 (7.2), BN and ReLU between, then the average.

    conv, norm  3-D for the map of a video (B, C, T, H, W), 2-D for that of audio (B, C, P, Q)

    Returns (B, d) in fp32, also under autocast.
    """

    def __init__(self, channels, d, conv, norm):
        super().__init__()
        self.net = nn.Sequential(
            conv(channels, channels, 1),
            norm(channels),
            nn.ReLU(inplace=True),
            conv(channels, d, 1),
        )

    def forward(self, x):
        return self.net(x).flatten(2).float().mean(2)


class AudioVisualModel(nn.Module):
    """Both backbones and their heads: (B, 3, T, H, W), (B, 1, P, Q) -> z_v (B, d), z_a (B, d).

    networks  names of the backbones, as keys of NETWORKS, which the checkpoint keeps; default the
              paper's
    """

    networks = {"video": "r2plus1d_18", "audio": "audio_resnet18"}

    def __init__(self, width=64, d=512, networks=None):
        super().__init__()
        if networks is not None:
            self.networks = networks
        self.video = NETWORKS[self.networks["video"]](width)
        self.audio = NETWORKS[self.networks["audio"]](width)
        self.video_head = ProjectionHead(8 * width, d, nn.Conv3d, BatchNorm3d)
        self.audio_head = ProjectionHead(8 * width, d, nn.Conv2d, nn.BatchNorm2d)

    def forward(self, video, audio):
        z_v = self.video_head(self.video.features(video))
        z_a = self.audio_head(self.audio.features(audio))
        return z_v, z_a


def largest_map(width, frames, crop, network="r2plus1d_18"):
    """Elements of the largest map of one clip in a video network: one of its first stage.

    It has `width` channels; in R(2+1)D-18 it is inside a Conv2Plus1D, and has its midplanes.
    """
    channels = width
    if network == "r2plus1d_18":
        channels = midplanes_of(width, width)
    side = -(-crop // 2)  # The stem halves it, rounded up.
    return channels * frames * side * side


def update_statistics(model, enabled):
    """Set whether BatchNorm's running statistics follow the forward passes of training."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            module.track_running_stats = enabled


if __name__ == "__main__":
    print("models.py: error: this command is now: python -m lab.bench step", file=sys.stderr)
    sys.exit(2)
