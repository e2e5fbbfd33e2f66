"""A public or made-up data set on its way into an empty root."""

import time
from collections.abc import Callable
from pathlib import Path

from rayapp.importing.domains.layout import DomainFile
from rayapp.importing.importer import Inputs, import_files
from rayapp.root.facts import DEFAULT_NUM_BUCKETS, refuse_other_domain
from rayapp.root.places import REQUESTS
from rayapp.root.publish import log_manifest
from rayapp.sources import Files


def import_once(root: Path, domain_file: DomainFile, fetch: Callable[[], Files]) -> bool:
    """Brings a data set into an empty root; whether it had to.

    Raises:
        PublishError: the root is another domain's.
    """
    refuse_other_domain(root, domain_file.domain)
    if log_manifest(root / REQUESTS)[0]:
        return False
    files = fetch()
    inputs = Inputs([files.events], [files.requests], [files.items], [files.users] if files.users else [])
    now_ms = int(time.time() * 1000)
    import_files(root, domain_file, inputs, now_ms=now_ms, num_buckets=DEFAULT_NUM_BUCKETS)
    return True
