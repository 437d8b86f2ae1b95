import re
from pathlib import Path
from typing import Annotated

import pytest

from nfc_gs.codes.base import TargetCode
from nfc_gs.config import ConfigError, PositiveInt, dump, kind_in, load, merge, spec, validate, validate_kind, write


@spec
class Inner:
    rate: float = 0.5


@spec
class Schema:
    name: str = "x"
    steps: PositiveInt = 10
    inner: Inner = Inner()
    code: Annotated[TargetCode, kind_in("nfc_gs.codes")]


def settings(tmp_path: Path, text: str, name: str = "a.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_later_file_lies_over_an_earlier_one_and_overrides_on_top(tmp_path):
    settings(tmp_path, "steps: 1\nname: base\n", "base.yaml")
    first = settings(tmp_path, "base: base.yaml\ncode: {kind: binary, bits: 4}\nsteps: 2\n")
    second = settings(tmp_path, "steps: 3\n", "b.yaml")
    loaded = load(Schema, [first, second], ["steps=4", "inner.rate=0.25"])
    assert (loaded.name, loaded.steps, loaded.inner.rate, loaded.code.bits) == ("base", 4, 0.25, 4)


def test_another_kind_starts_its_section_afresh():
    below = {"code": {"kind": "binary", "bits": 4}}
    assert merge(below, {"code": {"kind": "identity"}}) == {"code": {"kind": "identity"}}
    assert merge(below, {"code": {"bits": 5}}) == {"code": {"kind": "binary", "bits": 5}}


def test_what_is_written_loads_back_equal(tmp_path):
    loaded = load(Schema, [settings(tmp_path, "code: {kind: thermometer, bits: 6}\ninner: {rate: 0.125}\n")])
    write(loaded, tmp_path / "written.yaml")
    assert load(Schema, [tmp_path / "written.yaml"]) == loaded
    assert dump(loaded)["code"]["kind"] == "thermometer"


@pytest.mark.parametrize(
    ("text", "override", "expected"),
    [
        ("code: {kind: grey}", "", "did you mean 'gray'?"),
        ("code: {kind: binary, bist: 3}", "", "did you mean 'bits'?"),
        ("code: {kind: binary}\nstpes: 3", "", "did you mean 'steps'?"),
        ("code: {kind: binary}", "inner.raet=1", "did you mean 'rate'?"),
        ("code: {kind: binary}", "steps=-1", "greater than 0"),
        ("code: {kind: binary}", "steps=many", "valid integer"),
        ("code: {kind: binary}", "steps", "section.key=value"),
        ("code: {bits: 3}", "", "needs a `kind`"),
        ("code: 3", "", "TargetCode"),
        ("steps: 3", "", "code"),
        ("- 1", "", "must be a mapping"),
        ("a: [", "", "is not YAML"),
        ("code: {kind: binary}\nname: ${NFC_GS_NO_SUCH_VARIABLE}", "", "environment variable NFC_GS_NO_SUCH_VARIABLE"),
    ],
)
def test_a_mistake_is_answered_in_one_line_that_names_it(tmp_path, text, override, expected):
    path = settings(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(Schema, [path], [override] if override else [])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_answered_with_the_nearest_name(tmp_path):
    settings(tmp_path, "steps: 1", "toys.yaml")
    with pytest.raises(ConfigError, match=r"no such file; did you mean 'toys.yaml'\?"):
        load(Schema, [tmp_path / "toy.yaml"])


def test_a_base_that_leads_back_to_itself_is_refused(tmp_path):
    settings(tmp_path, "base: b.yaml", "a.yaml")
    settings(tmp_path, "base: a.yaml", "b.yaml")
    with pytest.raises(ConfigError, match="leads back to itself"):
        load(Schema, [tmp_path / "a.yaml"])


def test_a_dotted_kind_names_a_module_anywhere():
    loaded = validate(Schema, {"code": {"kind": "nfc_gs.codes.binary", "bits": 3}}, "here")
    assert loaded.code.bits == 3


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("hexplane", "has a dotted name: `nfc-gs kinds` lists them"),
        ("dynamic.deformation.bases", "no module 'dynamic.deformation'; did you mean 'deformations'?"),
        ("dynamic.deformations.basis", "no module 'dynamic.deformations.basis'; did you mean 'bases'?"),
        ("dynamix.deformations.bases", "no module 'dynamix'"),
    ],
)
def test_a_kind_that_is_nowhere_is_answered_with_where_to_look(kind, expected):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        validate(Schema, {"code": {"kind": kind}}, "here")


def test_a_misspelt_setting_below_a_kind_is_answered_with_the_nearest_name():
    settings = {"kind": "dynamic.deformations.hexplane", "residuals": {"colours": 1}}
    with pytest.raises(ConfigError, match=r"residuals\.colours'; did you mean 'colour_logits'|'colour'\?"):
        validate_kind("nfc_gs.deformations", settings, "here")


def test_an_override_is_kept_when_a_later_one_chooses_the_kind(tmp_path):
    path = settings(tmp_path, "code: {kind: binary, bits: 3}")
    assert load(Schema, [path], ["code.bits=5", "code.kind=gray"]).code.bits == 5
