#!/bin/sh
# F3: leave a job for a service outside that runs what it finds in its spool, as cron and at do.
printf '#!/bin/sh\nprintf attacked > %s\n' "$2" > "$1/job"
chmod 755 "$1/job"
