"""The logins of the backend, and whether they mean what whoever wrote them meant.

Knows no header and no address: `access` compares what a request brings.

Source:
    RFC 7617: basic auth ends the user at the first colon; requests 2.34.2, auth.py: a user and a password
    that are text go out in Latin-1.
"""

from dataclasses import dataclass, field

from draftloop.errors import SetupError

_SECRET_CHARS = 16  # token_urlsafe(24) makes 32


@dataclass(frozen=True)
class Logins:
    """The logins, and from where they are taken.

    is_open       without a login, answer every machine
    hosts         names by which the backend may be called; empty is any, where there is a login
    public_url    the address that people use
    wrong_logins  a minute from one address, after which it is refused without a look at the password
    """

    user: str = ""
    password: str = field(default="", repr=False)
    viewer_user: str = ""
    viewer_password: str = field(default="", repr=False)
    webhook_secret: str = field(default="", repr=False)
    is_open: bool = False
    hosts: tuple[str, ...] = ()
    public_url: str = ""
    wrong_logins: int = 10


def check_logins(logins: Logins) -> None:
    """Check that the logins mean what whoever wrote them meant.

    Raises:
        SetupError: One is incomplete, cannot be sent, or opens more than it should.
    """
    pairs = {
        "BACKEND": (logins.user, logins.password),
        "BACKEND_VIEWER": (logins.viewer_user, logins.viewer_password),
    }
    for name, (user, password) in pairs.items():
        if user and not password:
            raise SetupError(f"{name}_USER is set without {name}_PASSWORD.", hint="Set both, or none.")
        if password and not user:
            raise SetupError(
                f"{name}_PASSWORD is set without {name}_USER: nothing would ask for it.",
                hint="Set both, or none.",
            )
        for kind, value in (("USER", user), ("PASSWORD", password)):
            if value != value.strip() or not value.isprintable():
                raise SetupError(
                    f"{name}_{kind} begins or ends with white space, or holds a control character.",
                    hint="Remove it; a file that is read into a variable often ends in a newline.",
                )
        if ":" in user:
            raise SetupError(
                f"{name}_USER holds a colon, where basic auth ends it.", hint="Use another name."
            )
    _check_main(logins)
    _check_webhook_secret(logins)


def _check_main(logins: Logins) -> None:
    try:
        f"{logins.user}{logins.password}".encode("latin-1")
    except UnicodeEncodeError:
        raise SetupError(
            "BACKEND_USER or BACKEND_PASSWORD holds a character that Label Studio cannot send.",
            hint="Use ASCII.",
        ) from None
    if not logins.user and (logins.viewer_user or logins.webhook_secret):
        given = "BACKEND_VIEWER_USER" if logins.viewer_user else "BACKEND_WEBHOOK_SECRET"
        raise SetupError(
            f"{given} is set without BACKEND_USER: everything else would be open.",
            hint="Set BACKEND_USER and BACKEND_PASSWORD too.",
        )
    if logins.user and logins.user == logins.viewer_user:
        raise SetupError(
            "BACKEND_USER and BACKEND_VIEWER_USER are the same name.",
            hint="Give annotators one of their own.",
        )
    if logins.password and logins.password == logins.viewer_password:
        raise SetupError(
            "BACKEND_PASSWORD and BACKEND_VIEWER_PASSWORD are the same: annotators would know both.",
            hint="Give annotators one of their own.",
        )


def _check_webhook_secret(logins: Logins) -> None:
    secret = logins.webhook_secret
    if not secret:
        return
    if len(secret) < _SECRET_CHARS or not (secret.isascii() and secret.isprintable()) or " " in secret:
        raise SetupError(
            f"BACKEND_WEBHOOK_SECRET has under {_SECRET_CHARS} characters, or a blank, or others than ASCII.",
            hint='Make one: python3 -c "import secrets; print(secrets.token_urlsafe(24))"',
        )
    if secret in (logins.password, logins.viewer_password):
        raise SetupError(
            "BACKEND_WEBHOOK_SECRET is one of the passwords, and every member of Label Studio can read it.",
            hint="Make it another one.",
        )
