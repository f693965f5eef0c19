"""The methods section of a study, written from what was run; [brackets] mark what the author has to add.

Items are those of CLAIM 2024 (Tejani et al., Radiol Artif Intell 2024;6:e240300) and TRIPOD+AI (Collins et al., BMJ
2024;385:e078378); docs/methods.md says what each asks for.
"""

from dataclasses import dataclass
from importlib.metadata import version

from acuity.objectives.statistics.power import MIN_NEGATIVE_PATIENTS, MIN_POSITIVE_PATIENTS
from acuity.objectives.training.own_function import is_own_function
from acuity.storage.confirmations import StoredConfirmation
from acuity.study.config.schema import Experiment
from acuity.study.confirmation.nomination import MAX_AUC_GAP
from acuity.study.confirmation.protocol import Protocol
from acuity.study.dataset.demographics import Demographics
from acuity.study.registry.record import Registered
from acuity.study.results.answer import Answer
from acuity.study.results.summary import SearchSummary
from acuity.study.search.recipes import count_own_rounds
from acuity.study.units import counted, format_duration, format_times


@dataclass(frozen=True)
class Paragraph:
    """One paragraph and the checklist items that it covers."""

    heading: str
    text: str
    items: str


def write_methods(
    registered: Registered,
    answer: Answer,
    summaries: list[SearchSummary],
    cohort: Demographics | None,
    stored: StoredConfirmation | None,
    protocol: Protocol | None,
) -> list[Paragraph]:
    """The paragraphs in a paper's order. protocol: of the stored confirmation; None before it."""
    experiment = registered.experiment
    return [
        Paragraph("Data", _data(registered, cohort), "CLAIM 19, 20; TRIPOD+AI 12a, 16, 21"),
        Paragraph("Images", _images(experiment), "CLAIM 9; TRIPOD+AI 7"),
        Paragraph("Search", _search(registered, summaries), "CLAIM 25; TRIPOD+AI 12c"),
        Paragraph("Training", _training(experiment), "CLAIM 23, 24, 25; TRIPOD+AI 12c, 13"),
        Paragraph("Choice of the final networks", _choice(experiment, protocol), "CLAIM 26, 27; TRIPOD+AI 12c"),
        Paragraph("Statistics", _statistics(protocol), "CLAIM 28, 29; TRIPOD+AI 12e"),
        Paragraph("Results", _results(answer, protocol), "CLAIM 37; TRIPOD+AI 23a"),
        Paragraph(
            "Protocol, code and data", _open_science(registered, stored, answer), "CLAIM 42, 43, 44; TRIPOD+AI 18"
        ),
    ]


def _data(registered: Registered, cohort: Demographics | None) -> str:
    data = registered.experiment.data
    source = f"Labels {_list(registered.experiment.labels)} were taken from [source and how they were made]."
    published = cohort.published if cohort else bool(data.train_val_list or data.test_list)
    how = (
        "by the publisher's split (where it does not divide training from validation, by patient, stratified over all "
        "labels)"
        if published
        else "by patient (each patient in one part only), stratified over all labels, once and before any training"
    )
    if data.split_by == "image":
        how = "by image and not by patient (images of one patient are in several parts, so every AUC is optimistic)"
    if data.paper_split:
        how += ", 80 % for training and 20 % for validation, none for a test"
    if cohort is None:
        counts = f"[images] images of [patients] patients were divided {how}"
        is_known = published or data.paper_split or data.split_by == "image"  # they exclude a published split
        counts += "." if is_known else " [unless the index has a published split]."
    else:
        images = sum(part.images for part in cohort.parts.values())
        patients = sum(part.patients for part in cohort.parts.values())
        shares = {name: part.patients / patients for name, part in cohort.parts.items()}
        of_patients = f" of {patients:,} patients"
        if data.split_by == "image":  # patients are in several parts
            shares = {name: part.images / images for name, part in cohort.parts.items()}
            of_patients = ""
        parts = "; ".join(
            f"{name}: {part.images:,} images of {part.patients:,} patients ({100 * shares[name]:.0f} %)"
            for name, part in cohort.parts.items()
        )
        counts = f"{images:,} images{of_patients} were divided {how}: {parts}."
        counts += _left_out(cohort) + " " + _events(cohort)
    differ = "differ as the publisher made them [say how]" if published else "were allocated at random"
    same = (
        f"All patients are of one index, and the parts {differ}. No patients of another setting were used [unless "
        "`acuity score` was run]."
    )
    return f"{counts} {source} {same} SHA-256 of the split: {registered.identity.split_sha256[:16]}."


def _left_out(cohort: Demographics) -> str:
    text = ""
    if cohort.left_out:
        filters = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in cohort.left_out.items())
        text += f" Left out before by the experiment's filters: {filters}."
    if cohort.unreadable:
        text += f" Left out because their files could not be read: {cohort.unreadable:,}."
    if cohort.small:
        text += f" Left out because they are smaller than the largest resolution: {cohort.small:,}."
    if cohort.repeated:
        text += f" Left out because an image of an earlier part shows the same picture: {cohort.repeated:,}."
    return text


def _events(cohort: Demographics) -> str:
    counts_by_label = "; ".join(
        f"{each.label} "
        + " / ".join(f"{counts.positive_patients:,}" for name, counts in each.parts.items() if name in cohort.parts)
        for each in cohort.labels
    )
    return f"Patients with the finding ({' / '.join(cohort.parts)}): {counts_by_label}."


def _images(experiment: Experiment) -> str:
    fit = {"pad": "padded with black to a square", "stretch": "stretched to a square"}[experiment.data.fit]
    text = (
        f"Images that were not square were {fit}. Each image was reduced to each resolution by area averaging of the "
        "original and stored as 8-bit grey values."
    )
    enlarged = experiment.training.network_input
    if enlarged:
        text += (
            f" It was then enlarged to {enlarged} px by bilinear interpolation, so that the network input had the same "
            "size at all resolutions."
        )
    return text


def _search(registered: Registered, summaries: list[SearchSummary]) -> str:
    search = registered.experiment.search
    low, high = registered.exponents
    batch = {
        "search": f"The batch size was searched over powers of two from {2**low:,} to {2**high:,}. A batch size above "
        "the largest feasible one was replaced by that one.",
        "largest": "The batch size was the largest feasible one.",
    }.get(str(search.batch), f"The batch size was {search.batch}.")
    pruning = (
        "Trials whose validation AUC was below the median of earlier trials at the same epoch were stopped."
        if search.pruner == "median"
        else "No trial was stopped early."
    )
    look = (
        "one combination of architecture, learning rate and batch size. The combination was drawn for the label. A "
        "label that was added later used the best combination of the other labels"
    )
    if search.learn_from:
        look = (
            "the combination of architecture, learning rate and batch size that had been best in experiment "
            f"{_list(search.learn_from)} and for the other labels until then"
        )
    minimum, own, more = search.min_complete_per_resolution, count_own_rounds(search), ""
    if own:
        more += (
            f" It then trained {counted(own, 'other combination')} at every resolution. These were drawn for the "
            "label, and no two resolutions had the same."
        )
    if minimum > own + 1:
        more += (
            f" Until every resolution had {minimum} trials, it then trained the combination that had been best for all "
            f"labels{' and in that experiment' if search.learn_from else ''} until then, by a ridge regression of AUC "
            "on combination, label and resolution."
        )
    trials, complete, stopped = (
        sum(counts) for counts in zip(*((each.trials, each.complete, each.stopped) for each in summaries), strict=True)
    )
    others = trials - complete - stopped
    ended = f"{complete:,} complete, {stopped:,} stopped early" + (
        f", {others:,} without an AUC since they diverged or their batch did not fit" if others else ""
    )
    seconds = sum(each.training_s for each in summaries)
    devices = sorted({device for each in summaries for device in each.devices})
    return (
        f"Each label had one study. It searched image resolution ({_list(search.resolutions)} px), architecture "
        f"({_list(search.architectures)}) and learning rate (log-uniform from {search.learning_rate[0]:g} to "
        f"{search.learning_rate[1]:g} at a batch size of 128, scaled by the square root of batch size / 128). {batch} "
        f"A batch size was feasible if it was at most {search.max_batch_size:,}, its training step fitted the memory "
        f"of the device, and an epoch had at least {search.min_updates_per_epoch} steps. Each label first trained, at "
        f"every resolution, {look}.{more} These initial trials were not stopped early. "
        "Further trials were chosen by a multivariate tree-structured Parzen estimator (Optuna "
        f"{version('optuna')}). {pruning} The "
        "value of a trial was the AUC on validation patients after the last epoch. Each label had "
        f"{_range([each.trials for each in summaries])} finished trials, {trials:,} in all ({ended}). Training took "
        f"{format_duration(seconds)}{' on ' + _list(devices) if devices else ''}."
    )


def _training(experiment: Experiment) -> str:
    training, architectures = experiment.training, experiment.search.architectures
    initial = "randomly initialised"
    if training.pretrained:
        initial = "initialised with timm's pretrained weights"
    elif training.weights:
        initial = f"initialised from a file ({training.weights.name}; [say what it holds])"
    own = [each for each in architectures if is_own_function(each)]
    if own:
        built = f"[say how {_list(own)} was built and initialised]"
        initial = built if len(own) == len(architectures) else f"{initial} or {built}"
    network = (
        f"One binary network per label (timm {version('timm')}, PyTorch {version('torch')}), {initial}, was trained"
    )
    duration = f"for {counted(training.epochs, 'epoch')} in {training.precision}"
    if training.train:
        return (
            f"{network} {duration} by {training.train} [say its optimiser, schedule, loss and augmentation, and how it "
            f"used the weight decay of {training.weight_decay:g}]. Outputs were not recalibrated for the results."
        )
    changes = "Images were not augmented."
    if training.augmentation:
        changes = f"Images were augmented by {training.augmentation} [say how]."
    elif training.augment:
        changes = (
            "Images were augmented at random by rotation (up to 10 degrees), translation (5 % of the side), scaling "
            "(10 %), brightness (10 %) and contrast (20 %), without mirroring."
        )
    loss = (
        "binary cross-entropy. The loss was weighted so that positives and negatives contributed equally (weight of a "
        "positive at most 20); outputs are therefore not calibrated probabilities, and they"
    )
    if training.loss:
        loss = f"the loss {training.loss} [say what it is]. Outputs"
    return (
        f"{network} {duration} with AdamW (weight decay "
        f"{training.weight_decay:g}), a one-cycle schedule and {loss} were not recalibrated for the results. {changes}"
    )


def _choice(experiment: Experiment, protocol: Protocol | None) -> str:
    if protocol is None:
        return (
            "The search is not confirmed. The configurations below have the highest AUC on the validation patients. "
            "The same patients chose them, so their AUCs are optimistic. No result here is of test patients."
        )
    nominated = {label.nominated for label in protocol.labels}
    named = tuple(sorted(experiment.confirm.resolutions or ()))  # the file may have changed since
    were_named = any(each.reason == "not_named" for label in protocol.labels for each in label.skipped)
    at_resolutions = (
        f"At each of {_list(next(iter(nominated)))} px,"
        if were_named or nominated == {named}
        else "At the smallest and the largest resolution, and at each that was not shown on validation patients to be "
        f"more than {MAX_AUC_GAP:g} AUC below the label's best (one-sided test at 2.5 %, variance over patients),"
    )
    networks = sum(len(finalist.runs) for label in protocol.labels for finalist in label.finalists)
    nominees = [finalist.nominees for label in protocol.labels for finalist in label.finalists]
    chosen = (
        "the configuration with the highest validation AUC was retrained with other seeds"
        if max(nominees) == 1
        else f"the {_range(nominees)} best configurations were retrained with another seed, and the one with the best "
        "mean validation AUC of its search and its retraining was retrained further"
    )
    return (
        f"{at_resolutions} {chosen}. {_trainings(protocol)} The reference resolution of a label was the one with the "
        f"highest mean validation AUC over its retrainings. Finalists ({networks} networks), seeds, reference, margin "
        "and test patients were fixed in a protocol before the verdict was computed. Each network scored its test "
        f"patients once. No networks were averaged.{_not_confirmed(experiment, protocol)}"
    )


def _not_confirmed(experiment: Experiment, protocol: Protocol) -> str:
    """A sentence about the labels that were added after the confirmation."""
    confirmed = {label.label for label in protocol.labels}
    others = [label for label in experiment.labels if label not in confirmed]
    if not others:
        return ""
    return (
        f" {_list(others)} {'was' if len(others) == 1 else 'were'} not confirmed. The AUCs of "
        f"{'this label' if len(others) == 1 else 'these labels'} are of the validation patients that chose the "
        "configurations, so they are optimistic."
    )


def _trainings(protocol: Protocol) -> str:
    """How many networks of each finalist were trained, and which patients test them."""
    design, skipped = (
        protocol.design,
        any(each.reason == "not_needed" for label in protocol.labels for each in label.skipped),
    )
    if design.folds is None:
        text = (
            f"Each finalist was trained {design.networks} times on the training patients and tested on the test part."
        )
    else:
        text = (
            "The confirmation was cross-fitted. The training and test parts were divided by patient, "
            f"stratified over all labels, into {design.folds} folds (SHA-256 {(design.folds_sha256 or '')[:16]}). Each "
            "network was trained without one fold and tested on the patients of that fold. Validation patients were "
            f"in no fold. {_trained_folds(protocol)}"
        )
    if skipped:
        text += (
            " If a resolution lost more than the margin against a larger one on validation patients (one-sided test at "
            "2.5 %), no smaller resolution was retrained further."
        )
    return text


def _trained_folds(protocol: Protocol) -> str:
    """In how many folds the finalists of each label were trained, and what decided it."""
    design, counts = protocol.design, {label.label: len(label.folds) for label in protocol.labels}
    if design.min_networks == design.networks:
        return "Each finalist was trained once without each fold."
    same = len(set(counts.values())) == 1
    numbers = (
        f"{next(iter(counts.values()))} folds"
        if same
        else ", ".join(f"{count} folds for {label}" for label, count in counts.items())
    )
    return (
        f"Between {design.min_folds} and {design.folds} folds were trained, one after another. Training ended once an "
        "equally good resolution would have been non-inferior with 80 % power. The power followed from the numbers of "
        "patients and from the variance between networks on validation patients, for an assumed AUC of 0.8 and a "
        "correlation of 0.8 (a sequential form of Stein's two-stage test, Ann Math Stat 1945;16:243-258). This "
        "power was not required for a resolution that lost more than the margin on validation patients (one-sided "
        "test at 2.5 %). "
        f"Each finalist was trained in {numbers}."
    )


def _statistics(protocol: Protocol | None) -> str:
    if protocol is None:
        return (
            "Intervals are 95 % intervals of a single network's AUC over validation patients (DeLong's variance with "
            "patients as clusters, on the logit scale). They do not account for the choice of the best trial."
        )
    return (
        f"{_variance(protocol)} 95 % intervals use t quantiles at Satterthwaite's degrees of freedom. Non-inferiority "
        f"at a margin of {protocol.margin:g} AUC was tested one-sided at 5 %, with the larger of two standard errors. "
        "The first was computed at the estimated AUCs. The second was computed at two AUCs that differ by the margin, "
        "with a standard error that is constant on the logit scale. The resolutions below the largest confirmed one "
        "were tested in decreasing order, each against every larger confirmed resolution. Testing ended at the first "
        "resolution that failed a test. A resolution was named only if all its tests succeeded (intersection-union "
        "test). Its p value is the largest of them. The level of 5 % holds for each label. It was not adjusted for the "
        "number of labels. Two-sided differences within a label were adjusted by Holm's method. Labels with fewer than "
        f"{MIN_POSITIVE_PATIENTS} positive or {MIN_NEGATIVE_PATIENTS} negative test patients were not tested. Labels "
        "with a reference whose 95 % interval did not lie above an AUC of 0.5 were not tested either. All inference is "
        "conditional on the training patients."
    )


def _variance(protocol: Protocol) -> str:
    """How AUCs are averaged, and what their variances consist of."""
    if protocol.design.folds is None:
        return (
            "AUCs are means over seeds. Their variance has two terms. The first is the patient-clustered DeLong "
            "variance of the components averaged over seeds. The second is the variance between seeds divided by their "
            "number."
        )
    return (
        "AUCs are means over the folds of the AUC within each fold (LeDell et al., Electron J Stat 2015;9:1583-1607). "
        "Their variance has two terms. The first is the sum of the folds' patient-clustered DeLong variances, divided "
        "by the squared number of trained folds. The second is the variance between networks divided by their number. "
        "It was estimated on all validation patients, also for the AUCs by view, sex and age. The overlap of the "
        "folds' training patients is not part of the variance."
    )


def _results(answer: Answer, protocol: Protocol | None) -> str:
    if protocol is None:
        return "There is no verdict, because the search is not confirmed. AUCs with intervals are in the tables."
    told = [str(each.smallest_adequate["sentence"]) for each in answer.labels if each.smallest_adequate is not None]
    doubts = [warning for each in answer.labels for warning in each.warnings]
    return " ".join([*doubts, *told, "AUCs with intervals, also by view, sex and age, are in the tables."])


def _open_science(registered: Registered, stored: StoredConfirmation | None, answer: Answer) -> str:
    frozen = "There is no confirmation yet."
    if stored is not None:
        order = (
            "before a score of a test patient was read; these test patients have been used once"
            if answer.test_uses == 1
            else f"and these test patients have been used {format_times(answer.test_uses)} [say which of their scores "
            "were known before]"
        )
        frozen = (
            f"The protocol (SHA-256 {stored.protocol_sha256[:16]}) was frozen on {stored.frozen:%Y-%m-%d %H:%M} UTC, "
            f"{order}."
        )
    return (
        f"{frozen} Code: acuity-hpo {version('acuity-hpo')} (MIT licence); SHA-256 of the index: "
        f"{registered.identity.index_sha256[:16]}. [Funding; conflicts of interest; registration; where the data can "
        "be had.]"
    )


def _list(values: tuple[object, ...] | list[str] | None) -> str:
    words = [str(value) for value in values or ()]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
