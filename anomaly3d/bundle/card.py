"""What to know about an exported detector: the model card, MONAI's ``metadata.json``, and Croissant's description."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anomaly3d
from anomaly3d.bundle.cohort import Count, as_data, told
from anomaly3d.bundle.networks import TOLERANCE, Graph
from anomaly3d.evaluation.metrics import as_text
from anomaly3d.preprocessing.base import Preprocessor
from anomaly3d.report.tables import percent
from anomaly3d.runs.exported import DETECTOR, PREPROCESSING, SUMS, WEIGHTS
from anomaly3d.runs.folder import Trained
from anomaly3d.runs.lineage import flatten
from anomaly3d.runs.tracking import scrub
from anomaly3d.system.files import sha256

INTENDED = (
    "Research on unsupervised anomaly detection in {scans}: an anomaly score of a scan, how rare it is among healthy "
    "scans, and where the scan differs from a healthy one."
)
NOT = (
    "Not a medical device, not for diagnosis, triage or any decision about a patient. A high score says that a scan is "
    "unlike the healthy scans below, which another scanner, age or position can be the reason for; a low score says "
    "nothing of what the method cannot see. Not for scans of another kind, with contrast agent, or of other ages than "
    "those below."
)
REFERENCE = "Simarro Viana et al., Unsupervised 3D Brain Anomaly Detection, BrainLes 2020"
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
LICENSE = "https://www.apache.org/licenses/LICENSE-2.0"
FORMAT_OF = {"CT": "hounsfield", "MR": "magnitude"}  # MONAI's words for what goes in
PACKAGES = ("torch", "lightning", "monai", "numpy", "python")
FORMATS = {".json": "application/json", ".md": "text/markdown", ".yaml": "application/yaml"}


@dataclass(frozen=True)
class Facts:
    """What card and descriptions are made of.

    ``metrics`` is the evaluation's ``metrics.json``, None where it is not about this very model; ``tested_on``:
    ``real`` or ``random`` volumes that the graphs were checked on; ``sites`` have thresholds in ``calibration/``.
    """

    trained: Trained
    preprocessor: Preprocessor
    counts: list[Count]
    metrics: dict[str, Any] | None
    graphs: list[Graph]
    tested_on: str
    sites: list[str]

    @property
    def title(self) -> str:
        """Of the method."""
        return str(self.trained.lineage["title"])

    @property
    def intended(self) -> str:
        """What it is for."""
        return INTENDED.format(scans=self.preprocessor.scans)

    @property
    def scans(self) -> str:
        """Whose scans it has learned from."""
        return "synthetic heads (phantoms)" if self.trained.lineage["synthetic"] else "scans of people"


def results_of(facts: Facts) -> list[tuple[str, dict[str, Any]]]:
    """Test results of the detector, by what they are of; empty where it was not evaluated."""
    if facts.metrics is None:
        return []
    results, label = facts.metrics["results"], facts.trained.label
    if facts.metrics["focus"] == label:
        selected = results["selected"]
        found = [("A(x)", results["all"])]
        found += [(f"{selected['score']}, the chosen score", selected)] if selected else []
        found += [(f"A(x), cohort {name}", part) for name, part in results["cohort"].items()]
    else:
        layered = results["other_selected"].get(label)
        found = [("A(x)", results["other"].get(label))]
        found += [(f"{layered['score']}, the chosen score", layered)] if layered and layered["score"] != "total" else []
    return [(name, result) for name, result in found if result]


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    head = list(head)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [head, ["---"] * len(head), *rows])


def points_of(facts: Facts) -> list[dict[str, Any]]:
    """Locked thresholds on the test scans."""
    if facts.metrics is None or facts.metrics["focus"] != facts.trained.label:
        return []
    points = facts.metrics["operating_points"]
    return [p for p in points if p["rule"].startswith("locked") and p["threshold"] is not None]


def model_card(facts: Facts) -> str:
    """``README.md``."""
    lineage = facts.trained.lineage
    made, numbers = lineage["made_with"], results_of(facts)
    test = table(
        ("Score", "AUC [95 %]", "AP [95 %]", "Normal + abnormal"),
        [
            (name, as_text(r["auc"]), as_text(r["ap"]), f"{r['auc']['n_normal']} + {r['auc']['n_abnormal']}")
            for name, r in numbers
        ],
    )
    points = table(
        ("Score", "Threshold", "Recall", "Specificity"),
        [(p["score"], p["rule"], percent(p["recall"]), percent(p["specificity"])) for p in points_of(facts)],
    )
    cohort = table(
        ("Split", "Group", "Scans", "Subjects"),
        [
            (c.split, c.group if c.kind == "all" else f"{c.kind}: {c.group}", told(c.scans), told(c.subjects))
            for c in facts.counts
        ],
    )
    settings = flatten(scrub({"settings": lineage["settings"]})["settings"])  # none that names a place
    settings = {key: value for key, value in settings.items() if not key.startswith("dataset.counts.")}
    graphs = "\n".join(f"- `{graph.file}`: {graph_words(graph, facts.tested_on)}" for graph in facts.graphs)
    return f"""# {facts.title}, exported by anomaly3d {anomaly3d.__version__}

{facts.intended}

**What it is not.** {NOT}

Trained on {facts.scans}; {facts.trained.name}, phase {facts.trained.stage}.

## Use

```
python -m anomaly3d.score model=THIS_FOLDER 'scans=[scan.nii.gz]'
```

```python
anomaly3d.Scorer.from_folder("THIS_FOLDER").score("scan.nii.gz")
```

Each file is held against `{SUMS}` first; `sha256sum -c {SUMS}` does the same. Input and output of the graphs are
`(B, 1, {", ".join([str(facts.preprocessor.resolution)] * 3)})` in [-1, 1], volumes as `{PREPROCESSING}` makes them.

- `{WEIGHTS}`, `{DETECTOR}`: weights, and which detector they belong to
{graphs}
- `calibration/`: healthy scores, thresholds and statistics of {", ".join(facts.sites) or "nobody: no p-values"};
  `inputs.json`: what training scans are like
- `metadata.json`: in the form of MONAI bundles; `croissant.json`: files and cohort for Croissant

## Test

{test if numbers else "This model was not evaluated on labelled scans before it was exported."}

{points if points_of(facts) else "No locked threshold was tested."}

Intervals over subjects; thresholds are locked on healthy calibration scans, not chosen on test scans.

## Healthy scans behind it

{cohort if facts.counts else "The prepared data were not at hand at the export: who was scanned is not known here."}

## How it was made

{made["date"][:10]}, code {lineage["version"]} {lineage["git_commit"] or ""},
{", ".join(f"{name} {made[name]}" for name in PACKAGES)}; model SHA-256 {facts.trained.digest()}.

{table(("Setting", "Value"), [(f"`{key}`", f"`{value}`") for key, value in sorted(settings.items())])}

{REFERENCE}. Licence: Apache-2.0.
"""


def graph_words(graph: Graph, tested_on: str) -> str:
    """What is to be known of a file of the reconstruction."""
    if graph.difference is None:
        return f"not there: {graph.reason}"
    return (
        f"x and its brain mask -> reconstruction, any batch size; largest difference to the detector "
        f"{graph.difference:.1e} on {graph.volumes} {tested_on} volumes (allowed: {TOLERANCE:g})"
    )


def monai_metadata(facts: Facts) -> dict[str, Any]:
    """``metadata.json`` in the form of MONAI bundles."""
    made, size = facts.trained.lineage["made_with"], facts.preprocessor.resolution
    volume = {
        "type": "image",
        "format": "reconstruction",
        "modality": facts.preprocessor.modality,
        "num_channels": 1,
        "spatial_shape": [size, size, size],
        "dtype": "float32",
        "value_range": [-1, 1],
        "is_patch_data": False,
        "channel_def": {"0": "image"},
    }
    return {
        "schema": SCHEMA,
        "version": facts.trained.lineage["version"],
        "changelog": {facts.trained.lineage["version"]: "exported"},
        "monai_version": made["monai"],
        "pytorch_version": made["torch"],
        "numpy_version": made["numpy"],
        "required_packages_version": {"anomaly3d": anomaly3d.__version__},
        "name": facts.title,
        "task": f"unsupervised anomaly detection in {facts.preprocessor.scans}",
        "description": facts.intended,
        "authors": "the authors of anomaly3d",
        "copyright": "Apache-2.0",
        "data_source": facts.scans,
        "data_type": "NIfTI or DICOM" if facts.preprocessor.modality == "CT" else "NIfTI",
        "image_classes": f"prepared {facts.preprocessor.scans} in [-1, 1], see {PREPROCESSING}",
        "pred_classes": "the healthy head nearest to it, in [-1, 1]",
        "eval_metrics": {name: {kind: r[kind]["value"] for kind in ("auc", "ap")} for name, r in results_of(facts)},
        "intended_use": f"{facts.intended} {NOT}",
        "references": [REFERENCE],
        "network_data_format": {
            "inputs": {
                "image": {**volume, "format": FORMAT_OF.get(facts.preprocessor.modality, "image")},
                "brain": {
                    **volume,
                    "format": "segmentation",
                    "dtype": "uint8",
                    "value_range": [0, 1],
                    "channel_def": {"0": "brain"},
                },
            },
            "outputs": {"pred": {**volume, "channel_def": {"0": "reconstruction"}}},
        },
    }


def croissant(facts: Facts, folder: Path, files: Iterable[str]) -> dict[str, Any]:
    """``croissant.json``: Croissant's JSON-LD of the files of a folder and of the counts of the cohort."""
    fields = {"split": "sc:Text", "kind": "sc:Text", "group": "sc:Text", "scans": "sc:Text", "subjects": "sc:Text"}
    return {
        "@context": {
            "@language": "en",
            "@vocab": "https://schema.org/",
            "sc": "https://schema.org/",
            "cr": "http://mlcommons.org/croissant/",
            "dct": "http://purl.org/dc/terms/",
            "citeAs": "cr:citeAs",
            "conformsTo": "dct:conformsTo",
            "data": {"@id": "cr:data", "@type": "@json"},
            "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
            "field": "cr:field",
            "recordSet": "cr:recordSet",
        },
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": f"anomaly3d-{facts.trained.name}",
        "description": (
            f"{facts.title}, trained on {facts.scans}. {facts.intended} Counts of the cohort, no data of anybody."
        ),
        "license": LICENSE,
        "citeAs": REFERENCE,
        "version": facts.trained.lineage["version"],
        "datePublished": facts.trained.lineage["made_with"]["date"][:10],
        "creator": {"@type": "sc:Organization", "name": "the authors of anomaly3d"},
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": name,
                "name": name,
                "contentUrl": name,
                "encodingFormat": FORMATS.get(Path(name).suffix, "application/octet-stream"),
                "sha256": sha256(folder / name),
            }
            for name in files
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "cohort",
                "name": "cohort",
                "description": "How many healthy scans of how many people the detector was made with.",
                "field": [
                    {"@type": "cr:Field", "@id": f"cohort/{name}", "name": name, "dataType": kind}
                    for name, kind in fields.items()
                ],
                "data": [{f"cohort/{name}": value for name, value in row.items()} for row in as_data(facts.counts)],
            }
        ],
    }
