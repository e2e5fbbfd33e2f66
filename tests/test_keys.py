"""API keys: hashes only on disk, roles, and words for what goes wrong."""

import json
import stat
from pathlib import Path

import pytest

from rayapp.root.places import KEYS_FILE
from rayapp.root.publish import PublishError
from rayapp.serving.keys import Keys, Role, add_key, remove_key


def test_a_key_is_known_by_its_hash_alone(tmp_path: Path) -> None:
    client, admin = add_key(tmp_path, "shop", Role.CLIENT), add_key(tmp_path, "ops", Role.ADMIN)
    keys = Keys.load(tmp_path)
    assert keys.role_of(client) is Role.CLIENT
    assert keys.role_of(admin) is Role.ADMIN
    for wrong in ("", client[:-1], client + "x", client.upper(), "\ud800", "ü" * 40):
        assert keys.role_of(wrong) is None
    text = (tmp_path / KEYS_FILE).read_text()
    assert client not in text
    assert admin not in text
    assert stat.S_IMODE((tmp_path / KEYS_FILE).stat().st_mode) == 0o600


def test_a_removed_key_is_refused_and_the_others_stay(tmp_path: Path) -> None:
    one, two = add_key(tmp_path, "one", Role.CLIENT), add_key(tmp_path, "two", Role.CLIENT)
    remove_key(tmp_path, "one")
    keys = Keys.load(tmp_path)
    assert keys.role_of(one) is None
    assert keys.role_of(two) is Role.CLIENT
    with pytest.raises(PublishError, match="no key named 'one'"):
        remove_key(tmp_path, "one")
    with pytest.raises(PublishError, match="a key named 'two' already"):
        add_key(tmp_path, "two", Role.ADMIN)


@pytest.mark.parametrize("damage", ["{", "[1]", '[{"name": "x", "role": "king", "sha256": "0"}]', '{"a": 1}'])
def test_a_damaged_file_lets_nobody_in(tmp_path: Path, damage: str) -> None:
    (tmp_path / KEYS_FILE).write_text(damage)
    with pytest.raises(PublishError):
        Keys.load(tmp_path)


def test_no_file_no_keys(tmp_path: Path) -> None:
    assert Keys.load(tmp_path).rows == ()
    (tmp_path / KEYS_FILE).write_text(json.dumps([]))
    assert Keys.load(tmp_path).role_of("anything") is None
