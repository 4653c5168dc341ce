"""TLS for the listening side."""

import ssl

from spoakit.exceptions import ConfigurationError
from spoakit.server.settings import ListenTls


def server_context(settings: ListenTls) -> ssl.SSLContext:
    """Return a context to accept connections with, by TLS 1.2 and 1.3.

    A service makes one before it forks: its workers read no key, and sessions are resumed
    whichever worker they began in.

    Raises:
        ConfigurationError: a file cannot be read, or is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Nobody is there to be asked for the password of an encrypted key.
        context.load_cert_chain(settings.certificate, settings.key, password="")
    except OSError as error:
        files = settings.certificate + (f" with key {settings.key}" if settings.key else "")
        raise ConfigurationError(f"tls certificate {files}: {_reason(error)}") from error
    if settings.ca is not None:
        try:
            context.load_verify_locations(settings.ca)
        except OSError as error:
            raise ConfigurationError(f"tls ca {settings.ca}: {_reason(error)}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"no PEM file with a usable certificate or key ({error.reason or error})"
    return error.strerror or str(error)
