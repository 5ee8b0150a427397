"""Where the model is kept. `sqlite` is the embedded store."""
