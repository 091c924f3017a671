"""Image classification on Animals-10, or on any folder of images: the package behind the three notebooks.

The stages, in the order of the data flow. A stage uses only stages above it.

    files, csv_append, environment          what every stage uses: atomic writes, tables, errors, versions
    images, settings                        how one image is read; the settings of a workspace
    dataset, preprocessing                  download, scan and resize the images
    quality, splits                         near-duplicates, issues, leakage; training, validation and test set
    augmentation, input_pipeline            batches of images
    backbones, models, features             the networks, and the cached features of frozen layers
    runs, experiments, catalogue            what a run leaves; what is trained, and how: one value per experiment
    training, evaluation, results           the training, the metrics, the table of all runs
    inference, efficiency, grad_cam         what a trained model predicts, how fast, and on what evidence
    plots, plot_runs, report, export, demo  what a reader sees; a model for other programs and in a browser

Notebooks use the package through `auxiliary`, which re-exports its public names.
"""
