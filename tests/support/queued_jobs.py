"""Jobs that wait in a queue."""


def named(settings, name, **changes):
    return {**settings, "output_name": name, "max_train_steps": 2, "preview": False, **changes}


def waiting(service):
    return [
        job["name"]
        for job in sorted(
            (job for job in service.jobs() if job["state"] == "queued"),
            key=lambda job: job["position"],
        )
    ]
