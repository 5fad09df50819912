"""The Python API from training to a prediction. Run it as a script, or cell by cell as a notebook.

    python examples/api.py

On the embedded data it takes about a minute on a laptop's CPU.
"""

# %% What there is
import promptbench as pb

OUT = "results/example"
TRAINING = {"seeds": [1, 2, 3]}

print("methods:   ", ", ".join(pb.list_methods()))
print("datasets:  ", ", ".join(pb.list_datasets()))
print("benchmarks:", ", ".join(pb.list_benchmarks()))

# %% Train two methods on the base classes of one dataset. Finished trials are skipped the next time.
results = pb.run(["zeroshot", "coop"], dataset="icons", benchmark="base2novel", out=OUT, **TRAINING)
for record in results:
    accuracies = ", ".join(f"{one.classes} {one.accuracy:.1f} %" for one in record.evaluations)
    print(f"{record.trial.label}: {accuracies}")

# %% All records as a tidy table: group, plot and export them with pandas
frame = pb.records(OUT)
print(frame.groupby(["method", "classes"])["accuracy"].agg(["mean", "std", "count"]).round(2))

# %% The summary with intervals, and each method against one of them
print(pb.compare(OUT)[["method", "base", "novel", "hm", "hm_low", "hm_high"]].round(2))
pairs = pb.compare(OUT, control="zeroshot")
print(pairs[["method", "other", "metric", "difference", "low", "high"]].round(2))

# %% The trained prompts as a classifier of PIL images
best = max(results, key=lambda one: one.evaluations[0].accuracy)
classifier = pb.load(best.trial.folder(OUT))
dataset = pb.load_dataset("icons")
items = dataset.items("test", "base")[:3]
images = [dataset.image(item.path) for item in items]
print("logits:", tuple(classifier(images).shape))
for item, name, row in zip(items, classifier.predict(images), classifier.probabilities(images), strict=True):
    print(f"{item.path}: {name} ({row.max().item():.0%}), is {classifier.classnames[item.label]}")
