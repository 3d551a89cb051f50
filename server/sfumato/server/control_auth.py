"""Who may use Flower's Control API: the holder of the coordinator's token, and nobody else."""

import hmac
from collections.abc import Sequence

from flwr.common.constant import ACCESS_TOKEN_KEY, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.supercore.auth.typing import AccountAuthCredentials, AccountAuthLoginDetails, AccountInfo
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.superlink.auth_plugin import ControlAuthnPlugin

from sfumato.common.errors import Insecure


class TokenPlugin(ControlAuthnPlugin):
    """Admits requests with `Authorization: Bearer TOKEN`. There is no login and no refresh."""

    def __init__(self, token: str = "") -> None:
        if len(token) < 32:
            raise Insecure("the control token is too short to protect anything")
        self._token = token.encode()

    def validate_tokens_in_metadata(
        self, metadata: Sequence[tuple[str, str | bytes]]
    ) -> tuple[bool, AccountInfo | None]:
        given = [v for k, v in metadata if k == ACCESS_TOKEN_KEY]
        raw = given[0] if len(given) == 1 else b""
        raw = raw.encode("utf-8", "surrogateescape") if isinstance(raw, str) else raw
        if not hmac.compare_digest(raw, self._token):
            return False, None
        # The open-source federation manager knows one account; runs and nodes belong to it.
        return True, AccountInfo(flwr_aid=NOOP_FLWR_AID, account_name=NOOP_ACCOUNT_NAME)

    def get_login_details(self) -> AccountAuthLoginDetails | None:
        return None

    def get_auth_tokens(self, device_code: str) -> AccountAuthCredentials | None:
        raise FlowerError(ApiErrorCode.NO_ACCOUNT_AUTH, "There is no login; the coordinator holds the token.")

    def refresh_tokens(
        self, metadata: Sequence[tuple[str, str | bytes]]
    ) -> tuple[Sequence[tuple[str, str | bytes]] | None, AccountInfo | None]:
        raise FlowerError(ApiErrorCode.NO_ACCOUNT_AUTH, "There is no login; the coordinator holds the token.")
