// Of a report that is a page of its own. It is loaded by the service, not by the file.

import { sortTables } from "./sort.js";

sortTables(document);
