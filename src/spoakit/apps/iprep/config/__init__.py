"""The configuration file and settings of spoa-iprep."""
