"""[IO] The kinds of link that come with the project, and one's own: TOML files."""

from importlib.resources import files
from pathlib import Path

from heliograph.errors import ConfigError, NotFoundError
from heliograph.lab.link import Profile, profile_from_toml

_FOLDER = files("heliograph") / "profiles"


def profile_names() -> list[str]:
    """Names of the profiles that come with the project."""
    return sorted(entry.name.removesuffix(".toml") for entry in _FOLDER.iterdir() if entry.name.endswith(".toml"))


def load_profile(name: str) -> Profile:
    """The profile of this name, or in this file (a name that ends in .toml).

    Raises:
        NotFoundError: there is none.
        ConfigError: the file is wrong.
    """
    if name.endswith(".toml"):
        file = Path(name)
        try:
            return profile_from_toml(file.stem, file.read_text())
        except UnicodeDecodeError as error:
            raise ConfigError(f"profile {name} is not TOML: {error}") from error
        except OSError as error:
            raise NotFoundError(f"profile {name} can't be read: {error.strerror}") from error
    if name not in profile_names():
        raise NotFoundError(
            f"there is no profile {name}: use one of {', '.join(profile_names())}, or name a .toml file"
        )
    return profile_from_toml(name, (_FOLDER / f"{name}.toml").read_text())
