"""The guarded model behind OpenAI's HTTP interface, and the playground."""
