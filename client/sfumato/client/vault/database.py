"""One encrypted DuckDB file, opened so that nothing but that file can be reached.

DuckDB encrypts (AES-256-GCM, also the write-ahead log) only with OpenSSL, which its httpfs extension brings; that
extension is installed as a package, loaded from there for its cryptography alone, and the connection is then
locked: no other file, no network, no extension, no setting. DuckDB's own fallback (mbedtls) is never used.
"""

import base64
import importlib.metadata
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from sfumato.common.errors import BadInput, Insecure

SPILL = "spill"
IN_USE = ("Could not set lock", "Conflicting lock", "Unique file handle conflict")


def crypto_extension() -> Path:
    """The installed httpfs extension of exactly this DuckDB. Raises Insecure when it is missing or another's."""
    hint = f"Install duckdb-extension-httpfs=={duckdb.__version__}; without it nothing can be encrypted."
    try:
        import duckdb_extension_httpfs as package

        version = importlib.metadata.version("duckdb-extension-httpfs")
    except ImportError:
        raise Insecure("DuckDB's encryption (httpfs extension) is not installed", hint=hint) from None
    folder = Path(package.__file__).parent / "extensions" / f"v{duckdb.__version__}"
    path = folder / "httpfs.duckdb_extension"
    if version != duckdb.__version__ or not path.is_file():
        raise Insecure(
            f"DuckDB is {duckdb.__version__}, its encryption extension is {version}: they must be the same",
            hint=hint,
        )
    return path


def private_folder(folder: Path) -> None:
    """Make the folder 0700, or check that it is private. Raises Insecure when others have access."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o077:
        raise Insecure(
            f"{folder}: group or others have access (mode {mode:04o})",
            hint="A vault's folder is 0700: chmod 700 it.",
        )


@contextmanager
def private_files() -> Iterator[None]:
    """Files made inside are for their owner only (umask 077): DuckDB makes the log by itself."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def connect(
    path: Path, key: bytes, *, read_only: bool = False, memory_mib: int = 1024, threads: int = 1
) -> duckdb.DuckDBPyConnection:
    """A locked-down connection whose default catalogue is the encrypted file. Makes the file when absent.

    Raises Insecure (no encryption to be had), BadInput (in use, wrong key, not a store). Temporary data spills
    into a folder of this connection's own under `spill/` beside the file (two readers would overwrite each
    other's), encrypted under a key that DuckDB draws for it alone. Whoever opens to write clears what others left.
    """
    extension = crypto_extension()
    connection = duckdb.connect(
        config={
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
            "allow_persistent_secrets": "false",
            "python_enable_replacements": "false",
            "memory_limit": f"{memory_mib}MiB",
            "threads": str(threads),
        }
    )
    try:
        _load(connection, extension)
        _attach(connection, path, key, read_only=read_only)
        spill = path.parent / SPILL
        if not read_only:  # the file's lock says that nobody else has it open
            shutil.rmtree(spill, ignore_errors=True)
        spill.mkdir(mode=0o700, exist_ok=True)
        _lock_down(connection, spill / secrets.token_hex(8))
    except BaseException:
        connection.close()
        raise
    return connection


def _load(connection: duckdb.DuckDBPyConnection, extension: Path) -> None:
    try:
        connection.execute(f"LOAD {_literal(str(extension))}")
        unsafe = connection.execute("SELECT current_setting('force_mbedtls_unsafe')").fetchone()
    except duckdb.Error as e:
        raise Insecure(f"DuckDB's encryption extension does not load: {_first_line(e)}") from None
    if unsafe != (False,):
        raise Insecure("DuckDB is set to its unsafe random source (force_mbedtls_unsafe)")


def _attach(connection: duckdb.DuckDBPyConnection, path: Path, key: bytes, *, read_only: bool) -> None:
    options = f"ENCRYPTION_KEY '{base64.b64encode(key).decode()}', ENCRYPTION_CIPHER 'GCM'"
    if read_only:
        options += ", READ_ONLY"
    fault = ""
    try:
        with private_files():
            connection.execute(f"ATTACH {_literal(str(path))} AS store ({options})")
            connection.execute("USE store")
    except duckdb.Error as e:  # its text could hold the statement, and so the key: never chained, never shown
        fault = str(e)
    if not fault:
        encrypted = connection.execute(
            "SELECT encrypted, cipher FROM duckdb_databases() WHERE database_name = 'store'"
        ).fetchone()
        if encrypted != (True, "GCM"):
            raise Insecure(f"{path}: DuckDB did not encrypt the store")
        return
    if any(words in fault for words in IN_USE):
        raise BadInput(f"{path}: the store is in use", hint="Stop the branch first, then try again.")
    if "crypto module" in fault:
        raise Insecure("DuckDB has no OpenSSL to encrypt with; nothing was written")
    if "ncryption key" in fault or "AES tag" in fault:
        raise BadInput(f"{path}: does not open with this keyring's key, or it was altered")
    raise BadInput(f"{path}: not a store that can be opened (damaged, or of another version)")


def _lock_down(connection: duckdb.DuckDBPyConnection, spill: Path) -> None:
    connection.execute("SET temp_file_encryption = true")
    connection.execute(f"SET temp_directory = {_literal(str(spill))}")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def create(path: Path, key: bytes, statements: list[tuple[str, list[object]]]) -> None:
    """Make an encrypted file with this content, whole or not at all. Raises BadInput when it exists."""
    private_folder(path.parent)
    if path.exists():
        raise BadInput(f"{path}: exists already", hint="A store is never overwritten.")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        connection = connect(temporary, key)
        try:
            with private_files():
                for sql, parameters in statements:
                    connection.execute(sql, parameters)
                connection.execute("CHECKPOINT store")
        finally:
            connection.close()
        temporary.chmod(0o600)
        os.link(temporary, path)
    except FileExistsError:
        raise BadInput(f"{path}: exists already", hint="A store is never overwritten.") from None
    finally:
        temporary.unlink(missing_ok=True)
        temporary.with_name(temporary.name + ".wal").unlink(missing_ok=True)


def disconnect(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Close the connection, and remove its spill folder."""
    try:
        found = connection.execute("SELECT current_setting('temp_directory')").fetchone()
    except duckdb.ConnectionException:
        return  # closed already
    connection.close()
    if found and Path(found[0]).parent == path.parent / SPILL:
        shutil.rmtree(found[0], ignore_errors=True)


def quoted(name: str) -> str:
    """A SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
