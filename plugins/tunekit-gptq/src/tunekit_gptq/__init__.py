"""int4 and int8 GPTQ through GPTQModel, calibrated on the run's own training data."""
