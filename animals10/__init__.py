"""Image classification on Animals-10, or on any folder of images: the package behind the three notebooks.

Notebooks use it through `auxiliary`, which re-exports its public names. docs/design.md lists the modules in the order
of the data flow; a module imports only modules above it.
"""

from animals10.tensorflow_start import filter_start_messages, limit_threads, share_gpu, use_onednn
from animals10.versions import check_versions

check_versions()
limit_threads()
use_onednn()
share_gpu()
filter_start_messages()
