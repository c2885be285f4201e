"""ScalableViT written plainly, as the baseline of the benchmarks: the released names, shapes and order of operations.

Tokens are (B, N, C) sequences and become NCHW maps and back wherever a convolution comes; q, k and v are reshaped and
permuted out of one product; attention is two matrix products around an explicit softmax. Window sides and reductions
must divide the maps, as they do at 224 x 224 and its multiples.
"""

from collections.abc import Sequence

from timm.layers import DropPath
from torch import Tensor, nn

HEAD_WIDTH = 4096


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, H * W, C) -> contiguous (B, C, H, W)."""
    batch, _, dim = tokens.shape
    return tokens.reshape(batch, height, width, dim).permute(0, 3, 1, 2).contiguous()


def to_tokens(image_map: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return image_map.flatten(2).transpose(1, 2)


class PlainWindowAttention(nn.Module):
    """IWSA in windows of 7 x 7, (B, N, C) -> (B, N, C)."""

    def __init__(self, dim: int, num_heads: int, window: int = 7) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)
        self.lim_func = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        batch, count, dim = tokens.shape
        side, heads, head_dim = self.window, self.num_heads, dim // self.num_heads
        rows, columns = height // side, width // side

        x = tokens.reshape(batch, rows, side, columns, side, dim).transpose(2, 3)
        qkv = self.qkv(x).reshape(batch, rows * columns, side * side, 3, heads, head_dim).permute(3, 0, 1, 4, 2, 5)
        q, k, v = qkv[0], qkv[1], qkv[2]
        scores = (q @ k.transpose(-2, -1)) * self.scale
        weights = self.attn_drop(scores.softmax(dim=-1))
        z = (weights @ v).transpose(2, 3).reshape(batch, rows, columns, side, side, dim)
        z = z.transpose(2, 3).reshape(batch, count, dim)

        values = v.reshape(batch, rows, columns, heads, side, side, head_dim).permute(0, 3, 6, 1, 4, 2, 5)
        y = to_tokens(self.lim_func(values.reshape(batch, dim, height, width)))
        return self.proj_drop(self.proj(z + y))


class PlainScalableAttention(nn.Module):
    """SSA, (B, N, C) -> (B, N, C)."""

    def __init__(self, dim: int, num_heads: int, reduction: int, ratio: float, wide_value: bool) -> None:
        super().__init__()
        self.num_heads, self.reduced = num_heads, reduction > 1
        self.scale = (dim // num_heads * ratio) ** -0.5
        scaled = int(dim * ratio)
        value = scaled if wide_value and self.reduced else dim
        self.q = nn.Linear(dim, scaled)
        if self.reduced:
            self.reduction = nn.Sequential(
                nn.Conv2d(dim, dim, reduction, stride=reduction, groups=dim), nn.Conv2d(dim, scaled, 1)
            )
            self.norm_act = nn.Sequential(nn.LayerNorm(scaled), nn.GELU())
            self.k = nn.Linear(scaled, scaled)
            self.v = nn.Linear(scaled, value)
        else:
            self.kv = nn.Linear(dim, 2 * dim)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(value, dim)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        batch, count, dim = tokens.shape
        heads = self.num_heads
        q = self.q(tokens).reshape(batch, count, heads, -1).permute(0, 2, 1, 3)
        if self.reduced:
            reduced = self.norm_act(to_tokens(self.reduction(to_map(tokens, height, width))))
            k = self.k(reduced).reshape(batch, -1, heads, q.shape[-1]).permute(0, 2, 1, 3)
            v = self.v(reduced).reshape(batch, k.shape[2], heads, -1).permute(0, 2, 1, 3)
        else:
            kv = self.kv(tokens).reshape(batch, count, 2, heads, dim // heads).permute(2, 0, 3, 1, 4)
            k, v = kv[0], kv[1]
        scores = (q @ k.transpose(-2, -1)) * self.scale
        weights = self.attn_drop(scores.softmax(dim=-1))
        out = (weights @ v).transpose(1, 2).reshape(batch, count, -1)
        return self.proj_drop(self.proj(out))


class PlainMlp(nn.Module):
    """Two linear layers, the hidden one four times as wide."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * dim, dim)
        self.drop = nn.Dropout(0.0)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(tokens)))))


class PlainBlock(nn.Module):
    """Pre-norm attention and MLP with stochastic depth."""

    def __init__(self, dim: int, attention: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attention
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = PlainMlp(dim)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), height, width))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class PlainPatchEmbedding(nn.Module):
    """Convolution and LayerNorm: (B, C_in, H, W) -> (B, N, C) and the new height and width."""

    def __init__(self, in_chans: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(x)
        height, width = x.shape[2:]
        return self.norm(to_tokens(x)), height, width


class PlainPositionEncoding(nn.Module):
    """A depth-wise convolution of the map, added to it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, groups=dim))

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        image_map = to_map(tokens, height, width)
        return to_tokens(self.proj(image_map) + image_map)


class PlainScalableViT(nn.Module):
    """The classifier with the released head; takes the state dict of `scalablevit_small`, `_base` and `_large`."""

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 256, 512),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        depths: Sequence[int] = (2, 2, 20, 2),
        reductions: Sequence[int] = (8, 4, 2, 1),
        ratios: Sequence[float] = (1.25, 1.25, 1.25, 1),
        num_classes: int = 1000,
        wide_value: bool = False,
        drop_path_rate: float = 0.2,
    ) -> None:
        super().__init__()
        last = sum(depths) - 1
        rates = iter([drop_path_rate * block / last for block in range(last + 1)])
        self.patch_embeds = nn.ModuleList()
        self.pos_block = nn.ModuleList(PlainPositionEncoding(dim) for dim in channels)
        self.stages = nn.ModuleList()
        previous = 3
        for stage, (dim, heads) in enumerate(zip(channels, num_heads, strict=True)):
            self.patch_embeds.append(PlainPatchEmbedding(previous, dim, *((3, 2) if stage else (7, 4))))
            blocks = nn.ModuleList()
            for index in range(depths[stage]):
                attention: nn.Module = PlainWindowAttention(dim, heads)
                if index % 2:
                    attention = PlainScalableAttention(dim, heads, reductions[stage], ratios[stage], wide_value)
                blocks.append(PlainBlock(dim, attention, next(rates)))
            self.stages.append(blocks)
            previous = dim
        self.norm = nn.LayerNorm(previous, eps=1e-6)
        self.head = nn.Sequential(
            nn.Linear(previous, HEAD_WIDTH),
            nn.LayerNorm(HEAD_WIDTH, eps=1e-6),
            nn.GELU(),
            nn.Linear(HEAD_WIDTH, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> logits (B, num_classes)."""
        x = images
        for stage, blocks in enumerate(self.stages):
            tokens, height, width = self.patch_embeds[stage](x)
            for index, block in enumerate(blocks):
                tokens = block(tokens, height, width)
                if index == 0:
                    tokens = self.pos_block[stage](tokens, height, width)
            x = to_map(tokens, height, width)
        return self.head(self.norm(to_tokens(x)).mean(dim=1))
