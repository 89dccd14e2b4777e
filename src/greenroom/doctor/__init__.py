"""Why a run is as fast as it is, and what to change: before it (`diagnosis`), or from its log (`history`)."""
