"""How raw labels are read: 1 present, 0 absent, -1 uncertain, -2 not stated ("blank").

Sources and shards store raw labels. config.data.label_policy decides what evaluators make of
uncertain and blank ones. The policies for uncertain labels are those of CheXpert (Irvin et al.
2019, section 3): U-Ignore, U-Zeros, U-Ones and U-MultiClass.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmrl import build
from mmrl.types import InputError, Record

PRESENT, ABSENT, UNCERTAIN, BLANK = 1, 0, -1, -2

UNCERTAIN_POLICIES = ("ignore", "zeros", "ones", "classes")
"""What an uncertain label becomes: masked, absent, present, or 2, a class of its own."""

BLANK_POLICIES = ("ignore", "zero")
"""What a label that is not stated becomes: masked or absent."""

_KEYS = ("preset", "uncertain", "blank", "labels")


@dataclasses.dataclass(frozen=True)
class Policy:
    """How raw labels are read.

    Attributes:
      uncertain: one of `UNCERTAIN_POLICIES`, for every label that is not in `labels`.
      blank: one of `BLANK_POLICIES`.
      labels: label name -> one of `UNCERTAIN_POLICIES`.

    Raises:
      InputError: an unknown policy.
    """

    uncertain: str = "ignore"
    blank: str = "ignore"
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        where = "config.data.label_policy"
        if self.blank not in BLANK_POLICIES:
            raise InputError(build.unknown(f"{where}.blank", self.blank, BLANK_POLICIES))
        chosen = {"uncertain": self.uncertain}
        chosen |= {f"labels.{name}": policy for name, policy in self.labels.items()}
        for name, policy in chosen.items():
            if policy not in UNCERTAIN_POLICIES:
                raise InputError(build.unknown(f"{where}.{name}", policy, UNCERTAIN_POLICIES))

    @classmethod
    def from_config(cls, given: Mapping[str, Any]) -> "Policy":
        """Reads config.data.label_policy: a preset, or uncertain, blank and labels.

        Raises:
          InputError: an unknown key, preset or policy; a preset together with policies.
        """
        where = "config.data.label_policy"
        fields = dict(given.items())
        for key in fields:
            if key not in _KEYS:
                raise InputError(build.unknown(f"key in {where}", key, _KEYS))
        preset = fields.pop("preset", "")
        fields["labels"] = dict((fields.get("labels") or {}).items())
        own = cls(**fields)
        if not preset:
            return own
        if preset not in PRESETS:
            raise InputError(build.unknown(f"{where}.preset", preset, PRESETS))
        if own != cls():
            raise InputError(
                f"{where}: preset {preset!r} together with other keys; expected one of them"
            )
        return PRESETS[preset]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"uncertain": self.uncertain, "blank": self.blank, "labels": dict(self.labels)}

    def __call__(self, names: Sequence[str], raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Applies the policy.

        Args:
          names: of the C labels.
          raw: i8[..., C] of 1, 0, -1 and -2.

        Returns:
          labels i8[..., C]: 0 and 1, 2 for uncertain labels that are a class of their own, 0 where
          masked; mask bool[..., C]: False where a label is uncertain or blank and ignored.

        Raises:
          InputError: the last axis of `raw` is not C, or a label has another value.
        """
        raw = np.asarray(raw)
        if raw.shape[-1:] != (len(names),):
            raise InputError(f"labels of shape {list(raw.shape)}; expected [..., {len(names)}]")
        strange = np.setdiff1d(raw, (PRESENT, ABSENT, UNCERTAIN, BLANK))
        if strange.size:
            raise InputError(f"a label of {strange[0]}; expected 1, 0, -1 or -2")
        policies = [self.labels.get(name, self.uncertain) for name in names]
        becomes = np.array([_VALUES[policy] for policy in policies], np.int8)
        masked = np.array([policy == "ignore" for policy in policies], bool)
        uncertain, blank = raw == UNCERTAIN, raw == BLANK
        mask = ~((uncertain & masked) | (blank if self.blank == "ignore" else False))
        labels = np.where(uncertain, becomes, np.where(blank, 0, raw)).astype(np.int8)
        return labels, mask

    def table(
        self, names: Sequence[str], offered: Sequence[str], raw: np.ndarray, *, what: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Applies the policy to some of the labels.

        Args:
          names: of the C labels that are read. offered: names of the columns of `raw`.
          raw: i8[N, ...], as of `__call__`.
          what: the names are of, for the message.

        Returns:
          labels i8[N, C] and mask bool[N, C], as of `__call__`.

        Raises:
          InputError: a name that is not offered.
        """
        for name in names:
            if name not in offered:
                raise InputError(build.unknown(what, name, offered))
        return self(names, raw[:, [offered.index(name) for name in names]])

    def of(self, record: Record) -> dict[str, int]:
        """Label name -> 0, 1 or 2, without the masked labels."""
        labels, mask = self(record.label_names, np.asarray(record.labels, np.int8))
        columns = zip(record.label_names, labels.tolist(), mask.tolist(), strict=True)
        return {name: label for name, label, kept in columns if kept}


_VALUES = {"ignore": 0, "zeros": 0, "ones": 1, "classes": 2}

# As in the public code of GLoRIA (Huang et al. 2021) and of MGCA (Wang et al. 2022), which read the
# five labels of the CheXpert competition and no other.
_COMPETITION = {
    "Atelectasis": "ones",
    "Cardiomegaly": "zeros",
    "Consolidation": "zeros",
    "Edema": "ones",
    "Pleural Effusion": "ones",
}

PRESETS: dict[str, Policy] = {
    "u_ignore": Policy("ignore", "zero"),
    "u_zeros": Policy("zeros", "zero"),
    "u_ones": Policy("ones", "zero"),
    "u_multiclass": Policy("classes", "zero"),
    "gloria": Policy("ignore", "zero", _COMPETITION),
    "mgca": Policy("ignore", "zero", _COMPETITION),
}
"""Published conventions by name. All read a blank label as absent."""
