"""Read what a trial needs of a finished selection: its options, its selected samples and its cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml  # type: ignore[import-untyped]

from clusterucb import filenames, plugins
from clusterucb.atomic import unreadable
from clusterucb.errors import OptionError, RunError
from clusterucb.features.base import Feature
from clusterucb.features.embedding import Embedding
from clusterucb.options.config_file import option_text
from clusterucb.options.keywords import settings_from
from clusterucb.options.kinds import Checked, field_names
from clusterucb.options.search import ScoringSettings, SearchSettings
from clusterucb.report.run_page.found import finished_selection
from clusterucb.run.gradient_store import GradientStore
from clusterucb.run.kept_files import KeptFiles
from clusterucb.run.manifest import Manifest

_REPEAT = "repeat the run's command, which writes it again"
Settings = TypeVar("Settings", bound=Checked)
_REMEDY = f"remove it and {_REPEAT}"


class _Line(msgspec.Struct):
    """The fields that are needed from a line of ``scores.jsonl``."""

    id: str
    selected: bool


@dataclass(frozen=True)
class SelectedRun:
    """A finished selection.

    Attributes:
        folder: the run folder.
        manifest: its manifest.
        options: the options in its ``config.yaml``, by name.
        files: its files.
    """

    folder: Path
    manifest: Manifest
    options: dict[str, Any]
    files: KeptFiles

    @classmethod
    def of(cls, folder: Path) -> SelectedRun:
        """Read a run folder.

        Raises:
            RunError: the folder holds no finished selection, or one of its files is damaged.
        """
        manifest = finished_selection(folder)
        files = KeptFiles(folder, manifest.files, remedy=_REMEDY)
        path = files.path(filenames.CONFIG)
        try:
            options = yaml.safe_load(path.read_bytes())
        except OSError as error:
            raise unreadable(path, error) from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise RunError(f"{path} cannot be read; {_REPEAT}") from error
        if not isinstance(options, dict):
            raise RunError(f"{path} holds no options; {_REPEAT}")
        return cls(folder, manifest, options, files)

    def given(self, name: str, instead: Any) -> Any:
        """Return the run's pool, target or model, unless the caller gives another object ``instead``.

        Raises:
            OptionError: the run's was an object in memory, and none is given.
        """
        if instead is not None:
            return instead
        if name not in self.options:
            raise OptionError(
                f"the {name} of the run in {self.folder} was an object in memory; expected the same object again: "
                f"clusterucb.trial(..., {name}=...)"
            )
        return self.options[name]

    @cached_property
    def settings(self) -> ScoringSettings:
        """The run's options about rows, the model and gradients, at the run's own checkpoints."""
        given = self._settings(self._options(ScoringSettings), ScoringSettings)
        if given.store:
            given = GradientStore(given.store).applied_to(given)
        adapter = given.adapter
        if given.warms_up:
            adapter = self.files.find_folder(filenames.ADAPTER)
            if adapter is None:
                raise RunError(f"{self.folder / filenames.ADAPTER} is missing; {_REPEAT}")
        return replace(given, store=None, scorer="exact", adapter=adapter)

    @cached_property
    def search(self) -> SearchSettings:
        """The run's options about what is held out, and about the rule that selects."""
        rule = self.manifest.identity.options.get(
            "--rule"
        )  # version 0.1 wrote other names into its config.yaml
        given = {**self._options(SearchSettings), **({"rule": rule} if rule else {})}
        return self._settings(given, SearchSettings)

    def _settings(self, options: dict[str, Any], kind: type[Settings]) -> Settings:
        """Return options of the run as settings.

        Raises:
            RunError: an option has a value that no run has: a file of the run was changed.
        """
        try:
            return settings_from(options, kind)
        except OptionError as error:
            raise RunError(
                f"the options of the run in {self.folder} cannot be used: {error}; {_REPEAT}"
            ) from error

    def _options(self, kind: type[Checked]) -> dict[str, Any]:
        return {name: self.options[name] for name in field_names(kind) if name in self.options}

    @property
    def features(self) -> Feature:
        """The run's features.

        Raises:
            OptionError: the features are not installed under a name.
        """
        given = self.options.get("features", {})
        if not given:
            return Embedding()
        named = (
            given if isinstance(given, dict) else {"name": given, **self.options.get("feature_option", {})}
        )
        values = {key: _text(value) for key, value in named.items() if key != "name"}
        made: Feature = plugins.load().make("feature", named["name"], values)
        return made

    @cached_property
    def ids(self) -> list[str]:
        """The ids of the selected samples, in the order of their draws.

        Raises:
            RunError: the file is damaged.
        """
        path = self.files.path(filenames.SCORES)
        try:
            lines = [msgspec.json.decode(line, type=_Line) for line in path.read_bytes().splitlines()]
        except OSError as error:
            raise unreadable(path, error) from error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RunError(f"{path} cannot be read; {_REPEAT}") from error
        return [line.id for line in lines if line.selected]


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return option_text(value if value is None or isinstance(value, list | dict) else str(value))
