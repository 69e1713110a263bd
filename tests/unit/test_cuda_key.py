# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys of package repositories."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._cuda import (
    key,
    place,
)
from ansible_collections.llmops.finetune.plugins.module_utils._cuda.facts import Repository
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

ONE = """-----BEGIN PGP PUBLIC KEY BLOCK-----

mDMEawunoxYJKwYBBAHaRw8BAQdA2xMA2gtNU+xvrbIiZusF/3HShkgpgHHHS0xR
Rlv8fze0FW9uZSA8b25lQGV4YW1wbGUuY29tPoiQBBMWCAA4FiEEQc7ryC0m3Uub
wXxTuw0oQtD7ieoFAmsLp6MCGwMFCwkIBwIGFQoJCAsCBBYCAwECHgECF4AACgkQ
uw0oQtD7ierdpQD/dSwpbws6Q0j9z+aHDZEOZzZgVS/yVkZh560doczrElABAPQ7
TOWCWkZ8o0se7oQ7CL+qsVmUKugz26iQHoyRn0kM
=p0fo
-----END PGP PUBLIC KEY BLOCK-----
"""
ONE_IS = "41CEEBC82D26DD4B9BC17C53BB0D2842D0FB89EA"
TWO_IS = "1D82D63A92A3FED8551A6C63ED601EDCEA6C3B5B"
TWO = """-----BEGIN PGP PUBLIC KEY BLOCK-----
Version: as some tools write

mDMEawunoxYJKwYBBAHaRw8BAQdA8krqsURs7q8AY3sYTc8UVORVcQkvmqKRZ3Yd
KFrDr620FXR3byA8dHdvQGV4YW1wbGUuY29tPoiQBBMWCAA4FiEEHYLWOpKj/thV
Gmxj7WAe3OpsO1sFAmsLp6MCGwMFCwkIBwIGFQoJCAsCBBYCAwECHgECF4AACgkQ
7WAe3OpsO1sEQQEAgTgBOkKwoqM73tnqr+AyKItqoFgGtFQkf5lxAnxYlqUA/31E
e22bM32GZXQPtpaKf+65BzufBDKj3gqA0BcimkoK
=efIt
-----END PGP PUBLIC KEY BLOCK-----
"""


def test_a_key_is_known_by_its_fingerprint() -> None:
    assert key.fingerprints(ONE) == [ONE_IS] and key.fingerprints(TWO) == [TWO_IS]
    assert key.fingerprints(ONE.replace("\n", "\r\n")) == [ONE_IS]
    assert key.matches(ONE, ONE_IS.lower()) and not key.matches(ONE, TWO_IS)


@pytest.mark.parametrize(
    "text", ["", "<html>moved</html>", ONE.replace("mDME", "!!!!"), ONE[:80], ONE.replace("A2g", "A2h")]
)
def test_what_is_no_such_key_does_not_match(text: str) -> None:
    assert not key.matches(text, ONE_IS)


def test_a_second_key_in_the_file_does_not_slip_in() -> None:
    assert not key.matches(ONE + TWO, ONE_IS)


def test_a_digest_passes_over_the_line_of_the_version() -> None:
    digest = hashlib.sha256(TWO.replace("Version: as some tools write\n", "").encode()).hexdigest()
    assert key.matches(TWO, f"sha256:{digest}") and not key.matches(ONE, f"sha256:{digest}")


def test_a_key_that_is_not_the_known_one_is_not_put_on_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "_fetch", lambda address: ONE.encode())
    source = Repository(str(tmp_path / "a.sources"), "Types: deb\n", "https://a/b.pub", str(tmp_path / "a.asc"), TWO_IS)
    with pytest.raises(FinetuneError, match="not the one that is known") as error:
        place.add(source)
    assert ONE_IS in error.value.where and "cuda_repository_pin" in error.value.change
    assert not list(tmp_path.iterdir())
    place.add(source._replace(pin=ONE_IS))
    assert place.repository_is(source._replace(pin=ONE_IS)) and not place.repository_is(source)
