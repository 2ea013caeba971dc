"""The sequential recommender on the layers of an LLM, and SASRec.

Read ``recommender``, ``packing`` (its attention) and ``sasrec``; then the sources of weights:
``sources``, ``backbone``, ``weights``, ``decoders`` (which of them are refused), ``selfcheck``,
``origin``; then ``loading`` and ``saving``; then quantized weights: ``codes``, ``quantized``,
``quantized_table``; then the layers of a model: ``layers`` (choose and skip them), ``redundancy``
(how little they change), ``subsets`` (many choices at once). ``random_models`` builds small models
for tests and benchmarks. Imported by everything that trains, evaluates, compresses or exports.
"""
