"""What the page does in the browser itself: which conversation a tab shows, saving a file, which files are attached.

A tab keeps its conversation's id in its own storage, which outlives a reload and no more. Every button sends it first.
"""

TABS_ANSWER_IN = 500  # milliseconds
MAX_UPLOAD = 100  # MiB, of a file
TAB = "nextgpt-conversation"
# A duplicated tab begins with a copy of that storage. So a tab that comes with an id asks the others whether it is
# theirs; of two that ask at once, the lower number keeps it. The id is a secret: only its beginning is told.
READ_TAB = f"""async (_, ...others) => {{
    const id = () => sessionStorage.getItem('{TAB}') || '';
    const beginning = () => id().slice(0, 8);
    const tabs = new BroadcastChannel('{TAB}');
    let number = Math.random(), taken = false;
    tabs.onmessage = ({{data}}) => {{
        if (!id() || data.beginning !== beginning()) return;
        if (data.taken === number) taken = true;
        if (data.number > number) tabs.postMessage({{beginning: beginning(), taken: data.number}});
    }};
    if (id()) {{
        tabs.postMessage({{beginning: beginning(), number}});
        await new Promise(resolve => setTimeout(resolve, {TABS_ANSWER_IN}));
        if (taken) sessionStorage.removeItem('{TAB}');
    }}
    number = 0;
    return [id(), ...others];
}}"""
# A button that is pressed while the page still opens, or goes to another conversation, waits for the id.
WITH_TAB = """async (_, ...others) => {
    while (!window.nextgptConversation) await new Promise(resolve => setTimeout(resolve, 50));
    return [window.nextgptConversation, ...others];
}"""
LEAVE_TAB = """async (_, ...others) => {
    while (!window.nextgptConversation) await new Promise(resolve => setTimeout(resolve, 50));
    const id = window.nextgptConversation;
    window.nextgptConversation = '';
    return [id, ...others];
}"""
WRITE_TAB = f"id => {{ sessionStorage.setItem('{TAB}', id); window.nextgptConversation = id; return [] }}"
SAVE_FILE = """file => {
    Object.assign(document.createElement('a'), {href: file.url, download: file.orig_name}).click();
    return [];
}"""
# Gradio's box takes what is dropped on it alone; elsewhere the browser would leave the page for the file.
DROP_ANYWHERE = """() => {
    const box = () => document.querySelector('#message [role=group]');
    const isElsewhere = event => event.dataTransfer?.types.includes('Files') && !box()?.contains(event.target);
    document.addEventListener('dragover', event => isElsewhere(event) && event.preventDefault());
    document.addEventListener('drop', event => {
        if (!isElsewhere(event)) return;
        event.preventDefault();
        box().dispatchEvent(new DragEvent('drop', {dataTransfer: event.dataTransfer, cancelable: true}));
    });
    return [];
}"""
# What Gradio's box refuses it tells in a corner, over the page. So files that it would refuse, chosen or dropped, are taken
# out first and their names handed to the server, which tells of them beside the box as of everything else.
ATTACH_WHAT_FITS = f"""() => {{
    const input = () => document.querySelector('#message input[type=file]');
    const isTaken = file => {{
        const kinds = input().accept.split(',').map(kind => kind.trim().replace('*', ''));
        const name = file.name.toLowerCase();
        return kinds.some(kind => kind.startsWith('.') ? name.endsWith(kind) : file.type.startsWith(kind));
    }};
    const takeOut = (event, files) => {{
        const fit = new DataTransfer(), other = [], large = [];
        for (const file of files) {{
            if (!isTaken(file)) other.push(file.name);
            else if (file.size > {MAX_UPLOAD << 20}) large.push(file.name);
            else fit.items.add(file);
        }}
        if (!other.length && !large.length) return null;
        event.preventDefault();
        event.stopImmediatePropagation();
        window.nextgptRefused = [other.join(', '), large.join(', ')];
        document.querySelector('#refuse-files').click();
        return fit;
    }};
    document.addEventListener('change', event => {{
        if (event.target !== input()) return;
        const fit = takeOut(event, event.target.files);
        if (!fit) return;
        event.target.files = fit.files;
        event.target.dispatchEvent(new Event('change'));
    }}, true);
    document.addEventListener('drop', event => {{
        if (!event.dataTransfer || !document.querySelector('#message')?.contains(event.target)) return;
        const fit = takeOut(event, event.dataTransfer.files);
        if (fit) event.target.dispatchEvent(new DragEvent('drop', {{dataTransfer: fit, bubbles: true, cancelable: true}}));
    }}, true);
    return [];
}}"""
NAMES_OF_REFUSED = "() => window.nextgptRefused"
