"""Gaussians as they are optimized, splats as they are drawn, and a change of the population."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Gaussians:
    """What the optimizer sees; every name says its parameterization.

    `means` in world units; `log_scales` the logarithms of the three standard deviations; `quats` wxyz, of any length;
    `colour_logits` and `opacity_logits` the parameters of the codes (K = 1 and 3DGS's own activations for `identity`);
    `harmonics` the spherical harmonics of degree 1 and up (L = 0, 3, 8 or 15 of them), added to the decoded colour;
    `motion` what a deformation learns for each Gaussian by itself (D = 0 numbers for still scenes).
    """

    means: Float[Tensor, "N 3"]
    log_scales: Float[Tensor, "N 3"]
    quats: Float[Tensor, "N 4"]
    colour_logits: Float[Tensor, "N 3 K"]
    opacity_logits: Float[Tensor, "N J"]
    harmonics: Float[Tensor, "N L 3"]
    motion: Float[Tensor, "N D"]

    def __len__(self) -> int:
        return len(self.means)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Field names and tensors, in the order of declaration."""
        return ((f.name, getattr(self, f.name)) for f in fields(self))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Gaussians":
        """`change` applied to every tensor."""
        return replace(self, **{name: change(value) for name, value in self.items()})


@dataclass(frozen=True, kw_only=True)
class Splats:
    """What one camera at one time sees: activated, decoded and shaded, so that a rasterizer only draws C numbers.

    `scales` are standard deviations in world units, `quats` wxyz of any length, `opacities` in [0, 1].
    """

    means: Float[Tensor, "N 3"]
    scales: Float[Tensor, "N 3"]
    quats: Float[Tensor, "N 4"]
    opacities: Float[Tensor, " N"]
    values: Float[Tensor, "N C"]

    def __len__(self) -> int:
        return len(self.means)


@dataclass(frozen=True, kw_only=True)
class Population:
    """What a strategy looks at: the parameters, their activated sizes and opacities, and how to write an opacity back.

    `decode_opacities` gives the opacities [N] when somebody asks (most steps nobody does); `encode_opacities` maps
    opacities [M] to `opacity_logits` [M J] in the code in use; `extent` is the scene's radius in world units, by which
    "large" is judged.
    """

    gaussians: Gaussians
    decode_opacities: Callable[[], Tensor]
    encode_opacities: Callable[[Tensor], Tensor]
    extent: float

    @cached_property
    def opacities(self) -> Float[Tensor, " N"]:
        """Decoded opacities, in [0, 1]."""
        return self.decode_opacities()

    @property
    def scales(self) -> Float[Tensor, "N 3"]:
        """Standard deviations in world units."""
        return self.gaussians.log_scales.exp()


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A change of the population, as one gather: new row m comes from old row `parent[m]`.

    Rows marked `fresh` lose their optimizer's moments and their statistics. `values` overwrites whole fields of the new
    population ([M ...]); where `forget` names a field, all its moments are cleared (an opacity reset is just that).
    """

    parent: Int[Tensor, " M"]
    fresh: Bool[Tensor, " M"]
    values: dict[str, Tensor] = field(default_factory=dict)
    forget: tuple[str, ...] = ()

    def apply(self, gaussians: Gaussians) -> Gaussians:
        """The new population's parameters."""
        return replace(
            gaussians,
            **{
                name: self.values[name] if name in self.values else old.index_select(0, self.parent)
                for name, old in gaussians.items()
            },
        )

    def means(self, gaussians: Gaussians) -> Float[Tensor, "M 3"]:
        """The new population's means."""
        return self.values["means"] if "means" in self.values else gaussians.means.index_select(0, self.parent)

    def reordered(self, order: Int[Tensor, " M"]) -> "Edit":
        """The same change with its new rows in another order."""
        return replace(
            self,
            parent=self.parent.index_select(0, order),
            fresh=self.fresh.index_select(0, order),
            values={name: value.index_select(0, order) for name, value in self.values.items()},
        )

    def carry(self, statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Per-Gaussian tensors [N ...] re-indexed to the new population; fresh rows are zero."""
        # By numbers: half the time of indexing by Gaussians, and a fifth of that by a mask.
        fresh = self.fresh.nonzero()[:, 0]
        return {name: old.index_select(0, self.parent).index_fill_(0, fresh, 0) for name, old in statistics.items()}
