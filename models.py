"""The two backbones and the projection heads (Section 3, "Notations and Architecture").

    video (B, 3, T, H, W) --> R(2+1)D-18 --> (B, 512, T/8, H/16, W/16) --> head --> z_v (B, 512)
    audio (B, 1, P, Q)    --> ResNet-18  --> (B, 512, P/32, Q/32)      --> head --> z_a (B, 512)

T frames of H x W pixels; P mel filters, Q audio frames. After pretraining the heads are thrown away.

    python models.py        their sizes, and the speed of a step of the paper's size
"""

import torch
import torch.nn.functional as F
from torch import nn


class SpatialConv(nn.Conv3d):
    """A 1 x n x n convolution: each frame is an image. Computed so: in 2-D its backward pass takes half the time."""

    def __init__(self, cin, cout, n, stride=1):
        super().__init__(cin, cout, (1, n, n), (1, stride, stride), (0, n // 2, n // 2), bias=False)

    def forward(self, x):
        frames = x.transpose(1, 2).flatten(0, 1)                             # (B * T, C, H, W)
        frames = F.conv2d(frames, self.weight[:, :, 0], None, self.stride[1:], self.padding[1:])
        return frames.unflatten(0, (len(x), -1)).transpose(1, 2)             # (B, C', T, H', W')


class Conv2Plus1D(nn.Sequential):
    """A 3x3x3 convolution factored into space (1x3x3), then time (3x1x1), with BN and ReLU between: "(2+1)D".

    `midplanes` channels in between keep the number of weights that of the full 3-D convolution (Tran et al., 2018):
    27 * cin * cout = 9 * cin * mid + 3 * mid * cout.
    """

    def __init__(self, cin, cout, midplanes, stride=1):
        super().__init__(
            SpatialConv(cin, midplanes, 3, stride),
            nn.BatchNorm3d(midplanes),
            nn.ReLU(inplace=True),
            nn.Conv3d(midplanes, cout, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
        )


class VideoBlock(nn.Module):
    """Residual block of two (2+1)D convolutions; a stride halves time as well as space."""

    def __init__(self, cin, cout, stride=1):
        super().__init__()
        # As in torchvision, one number serves both convolutions, though the second has cout inputs.
        midplanes = (cin * cout * 3 * 3 * 3) // (cin * 3 * 3 + 3 * cout)
        self.conv1 = nn.Sequential(Conv2Plus1D(cin, cout, midplanes, stride), nn.BatchNorm3d(cout), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(Conv2Plus1D(cout, cout, midplanes), nn.BatchNorm3d(cout))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or cin != cout:
            self.downsample = nn.Sequential(nn.Conv3d(cin, cout, 1, stride, bias=False), nn.BatchNorm3d(cout))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv2(self.conv1(x)) + shortcut)


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
            self.downsample = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class Backbone(nn.Module):
    """What the two networks share: after a stem, four stages of two blocks; channels double as the size halves.

    `features(x)` is the map that a projection head takes; `net(x)` is that map averaged, then through `fc` where there
    are classes: (B, num_classes), or (B, 8 * width) without.
    """

    def add_stages(self, block, pool, width, num_classes):
        if width < 8 or width % 8:  # below 8, oneDNN's channels-last 1x1 convolution corrupts memory on AVX2
            raise ValueError(f"width = {width} must be a multiple of 8")
        self.layer1 = nn.Sequential(block(width, width), block(width, width))
        self.layer2 = nn.Sequential(block(width, 2 * width, stride=2), block(2 * width, 2 * width))
        self.layer3 = nn.Sequential(block(2 * width, 4 * width, stride=2), block(4 * width, 4 * width))
        self.layer4 = nn.Sequential(block(4 * width, 8 * width, stride=2), block(8 * width, 8 * width))
        self.avgpool = pool
        self.fc = nn.Linear(8 * width, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x):
        return self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))

    def forward(self, x):
        return self.fc(self.avgpool(self.features(x)).flatten(1))


class R2Plus1D18(Backbone):
    """The video network f: (B, 3, T, H, W) -> (B, 8 * width), or (B, num_classes) logits if there are classes.

    At width 64: names, shapes and outputs of `torchvision.models.video.r2plus1d_18`.
    """

    def __init__(self, width=64, num_classes=0):
        super().__init__()
        midplanes = 45 * width // 64  # 45 at the full width: the authors' number, not the formula's
        self.stem = nn.Sequential(
            SpatialConv(3, midplanes, 7, stride=2),
            nn.BatchNorm3d(midplanes),
            nn.ReLU(inplace=True),
            nn.Conv3d(midplanes, width, (3, 1, 1), 1, (1, 0, 0), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )                                                                    # (B, width, T, H/2, W/2)
        self.add_stages(VideoBlock, nn.AdaptiveAvgPool3d(1), width, num_classes)
        self.to(memory_format=torch.channels_last_3d)  # 1.2 to 1.3 times the speed on a CPU


class AudioResNet18(Backbone):
    """The audio network g: log-mel (B, 1, P, Q) -> (B, 8 * width), or (B, num_classes) logits if there are classes.

    At width 64: names, shapes and outputs of `torchvision.models.resnet18`, but for one input channel.
    """

    def __init__(self, width=64, num_classes=0):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.add_stages(AudioBlock, nn.AdaptiveAvgPool2d(1), width, num_classes)
        self.to(memory_format=torch.channels_last)

    def stem(self, x):
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))              # (B, width, P/4, Q/4)


r2plus1d_18, audio_resnet18 = R2Plus1D18, AudioResNet18


class ProjectionHead(nn.Module):
    """h_f or h_g: two convolutions of kernel 1 (7.2), BN and ReLU between, then the average over space and time.

    `conv`, `norm` are of the map's kind: 3-D for video (B, C, T, H, W), 2-D for audio (B, C, P, Q). -> (B, d)
    """

    def __init__(self, channels, d, conv, norm):
        super().__init__()
        self.net = nn.Sequential(conv(channels, channels, 1), norm(channels), nn.ReLU(inplace=True), conv(channels, d, 1))

    def forward(self, x):
        return self.net(x).flatten(2).float().mean(2)                        # fp32, also under autocast


class AudioVisualModel(nn.Module):
    """Both networks with their heads: video (B, 3, T, H, W), audio (B, 1, P, Q) -> z_v (B, d), z_a (B, d)."""

    def __init__(self, width=64, d=512):
        super().__init__()
        self.video = r2plus1d_18(width)
        self.audio = audio_resnet18(width)
        self.video_head = ProjectionHead(8 * width, d, nn.Conv3d, nn.BatchNorm3d)
        self.audio_head = ProjectionHead(8 * width, d, nn.Conv2d, nn.BatchNorm2d)

    def forward(self, video, audio):
        z_v = self.video_head(self.video.features(video))
        z_a = self.audio_head(self.audio.features(audio))
        return z_v, z_a


def benchmark(batch=2, steps=2):
    """Speed of a forward and backward pass of the paper's size, against what the machine does in a matrix product."""
    from torch.utils.benchmark import Timer
    from torch.utils.flop_counter import FlopCounterMode

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, square = AudioVisualModel().to(device), torch.randn(4096, 4096, device=device, dtype=dtype)
    video, audio = torch.randn(batch, 3, 16, 158, 158, device=device), torch.randn(batch, 1, 96, 301, device=device)

    def step():
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            z_v, z_a = model(video, audio)
        (z_v.square().mean() + z_a.square().mean()).backward()

    def seconds(work):
        return Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads()).timeit(steps).mean

    with FlopCounterMode(display=False) as counter:
        step()
    operations = counter.get_total_flops() / batch
    before, speed, after = seconds(lambda: square @ square), batch / seconds(step), seconds(lambda: square @ square)
    product = 4096**3 / before + 4096**3 / after  # operations a second, twice measured: a shared machine's speed drifts
    print(f"{device.type}, {dtype}, {torch.get_num_threads()} threads: {operations / 1e9:.0f} GFLOP a snippet, matrix product "
          f"{product / 1e9:.0f} GFLOP/s")  # fmt: skip
    print(f"{speed:.2f} snippets/s of a limit of {product / operations:.2f}: {speed * operations / product:.0%}")


if __name__ == "__main__":
    benchmark()
