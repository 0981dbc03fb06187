"""From a checkpoint's own files to a manifest, and a manifest held against those files.

said             one value, and the file and the key that have it
files            which files a checkpoint has
config           `config.json` and the metadata of GGUF -> the architecture
modules          `modules.json` of sentence-transformers -> output steps and prompts
tokens           the tokenizer's files -> the longest text, and what the tokenizer does
facts            all of these together
derive           facts -> a manifest, and a summary for people
toml             the text of a `model.toml`
write            the folder of a model
repository       a repository on a hub -> its files in the store
contradictions   a manifest against what the files say
"""
