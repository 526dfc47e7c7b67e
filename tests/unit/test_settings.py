"""Settings: what label-studio-ml calls otherwise is read too, or refused in words that name ours."""

import os

import pytest

from draftloop.errors import SetupError
from draftloop.settings import ALSO_READ, REFUSED, Settings

THEIRS = {
    "BASIC_AUTH_USER": "label-studio",
    "BASIC_AUTH_PASS": "a password",
    "LABEL_STUDIO_ACCESS_TOKEN": "token-1",
    "LABEL_STUDIO_HOST": "https://studio.example",
    "LOG_LEVEL": "WARNING",
}


@pytest.fixture(autouse=True)
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in os.environ:
        if name.startswith(("BACKEND_", "LABEL_STUDIO_", "MODEL_")) or name in THEIRS:
            monkeypatch.delenv(name)
    return monkeypatch


def shown(settings: Settings) -> list[str]:
    ours = settings.backend
    return [
        ours.user,
        ours.password.get_secret_value(),
        settings.label_studio.api_key.get_secret_value(),
        str(settings.label_studio.url),
        ours.log_level,
    ]


def test_the_names_of_label_studio_ml_are_read_where_ours_are_not_set(env: pytest.MonkeyPatch) -> None:
    assert set(ALSO_READ.values()) == set(THEIRS)
    for name, value in THEIRS.items():
        env.setenv(name, value)
    theirs = ["label-studio", "a password", "token-1", "https://studio.example/", "warning"]
    assert shown(Settings()) == theirs
    for name in ALSO_READ:
        env.setenv(name, "")  # as a compose file sets what nobody gave
    assert shown(Settings())[:4] == theirs[:4]


def test_ours_win(env: pytest.MonkeyPatch) -> None:
    for name, value in THEIRS.items():
        env.setenv(name, value)
    ours = {
        "BACKEND_USER": "us",
        "BACKEND_PASSWORD": "ours",
        "LABEL_STUDIO_API_KEY": "token-2",
        "LABEL_STUDIO_URL": "http://other.example",
        "BACKEND_LOG_LEVEL": "error",
    }
    for name, value in ours.items():
        env.setenv(name, value)
    assert shown(Settings()) == ["us", "ours", "token-2", "http://other.example/", "error"]


def test_a_guest_leaves_them_to_the_server_around_it(env: pytest.MonkeyPatch) -> None:
    for name, value in {**THEIRS, **dict.fromkeys(REFUSED, "x")}.items():
        env.setenv(name, value)
    assert shown(Settings(is_guest=True)) == ["", "", "", "http://127.0.0.1:8080/", "info"]


@pytest.mark.parametrize(("name", "ours"), [("MODEL_DIR", "MODEL_URL"), ("CACHE_TYPE", "CACHE_URL")])
def test_what_means_something_else_is_refused_in_our_words(
    env: pytest.MonkeyPatch, name: str, ours: str
) -> None:
    env.setenv(name, "/data")
    with pytest.raises(SetupError, match=f"{name} is a setting of label-studio-ml.*{ours}"):
        Settings()


def test_a_level_that_there_is_not_is_refused_under_our_name(env: pytest.MonkeyPatch) -> None:
    env.setenv("LOG_LEVEL", "verbose")
    with pytest.raises(SetupError, match="BACKEND_LOG_LEVEL: "):
        Settings()
