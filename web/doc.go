// Package web is the dashboard: pages about boxes and what was done in them, for one
// person in front of one browser.
//
// What comes in: requests from a browser, and word from the daemon that something
// changed ([Hub.Publish]). What goes out: HTML that reads well without JavaScript, and
// one event stream a tab over which the parts of the page that changed are sent again.
// It reads what it shows from a [Source], hands what a button asks for to [Orders], and
// keeps nothing but who is signed in ([Auth]).
//
// # The one idea to know
//
// A page is made of parts (package-private templ components, each with an id): the page
// renders them all, the stream renders the same components again and sends those whose
// HTML is another than before. So there is one way to show a thing, a page that was
// opened and a page that was updated are equal, and the browser is told what to show,
// never what happened: 20,000 operations a second are ten small messages.
//
// # Hostile text
//
// Everything that an operation names was chosen by a program that nobody trusts. It goes
// through [visible] on its way to a page: whatever would not be seen as it is (control
// bytes, bytes that are not UTF-8, marks that turn the direction of text) is written as
// an escape and set apart, whatever is long is cut in the open, and what a copy button
// gives is quoted for a shell. templ escapes HTML. The Content-Security-Policy allows
// scripts and styles of ours alone, so that a mistake here stays text.
package web
