import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from heliograph.errors import ConfigError
from heliograph.names import Name, Version, check_name, parse_node, parse_release, version_key

LEGAL = ["a", "shop-7", "0", "x" * 40]
ILLEGAL = ["", "A", "a_b", "a/b", "a b", "x" * 41, "a\n", "é", "+", "#", "../a", "a\x00"]


@pytest.mark.parametrize("value", LEGAL)
def test_a_legal_name_passes_in_both_spellings_of_the_rule(value: str) -> None:
    assert check_name(value, "site") == value
    assert TypeAdapter(Name).validate_python(value) == value


@pytest.mark.parametrize("value", ILLEGAL)
def test_an_illegal_name_is_refused_in_both_spellings_of_the_rule(value: str) -> None:
    with pytest.raises(ConfigError, match="site"):
        check_name(value, "site")
    with pytest.raises(ValidationError):
        TypeAdapter(Name).validate_python(value)


@given(st.text(max_size=45))
def test_the_function_and_the_field_agree_on_every_text(value: str) -> None:
    try:
        TypeAdapter(Name).validate_python(value)
        field = True
    except ValidationError:
        field = False
    try:
        check_name(value, "name")
        function = True
    except ConfigError:
        function = False
    assert field == function


def test_a_node_is_written_site_slash_node() -> None:
    assert parse_node("shop-7/till-1") == ("shop-7", "till-1")
    for wrong in ("till-1", "a/b/c", "/b", "a/", "", "a/B", "a/b\n"):
        with pytest.raises(ConfigError):
            parse_node(wrong)


@pytest.mark.parametrize(
    "wrong",
    ["digits", "digits@1.0", "digits@1.0.0.0", "digits@01.0.0", "digits@1.0.0-rc", "@1.0.0", "Digits@1.0.0",
     "digits@1.0.0\n", "digits@١.0.0", "digits@1٣.0.0", "digits@1.0.0@1.0.0", "digits@-1.0.0", "digits@1234567890.0.0"],
)  # fmt: skip
def test_a_release_that_is_not_model_at_three_numbers_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError):
        parse_release(wrong)
    model, _, version = wrong.partition("@")
    if model == "digits":
        with pytest.raises(ValidationError):
            TypeAdapter(Version).validate_python(version)


def test_a_release_splits_into_model_and_version() -> None:
    assert parse_release("digits@1.20.3") == ("digits", "1.20.3")


def test_versions_sort_by_number_and_not_by_letter() -> None:
    assert sorted(["1.10.0", "1.9.0", "2.0.0", "1.9.11"], key=version_key) == ["1.9.0", "1.9.11", "1.10.0", "2.0.0"]
